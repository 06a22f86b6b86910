"""The learning rate of a run, compared with its method's default."""

from glmtune.recipe import Method, Recipe


def with_default_rate(recipe: Recipe) -> Recipe:
    """Return the recipe with a learning rate: its own, else its method's default."""
    if recipe.train.lr is not None:
        return recipe
    train = recipe.train.model_copy(update={"lr": recipe.method.default_lr})
    return recipe.model_copy(update={"train": train})


def rate_line(method: Method, lr: float) -> str:
    """Return one line: the learning rate, and its method's default with the source of that."""
    default = f"the default of {method.name} ({method.lr_source.partition(';')[0]})"
    if lr == method.default_lr:
        return f"learning rate: {lr:g}, {default}"
    return f"learning rate: {lr:g}; {method.default_lr:g} is {default}"


def is_rate_high(method: Method, lr: float) -> bool:
    """True if the learning rate is above the method's default."""
    return lr > method.default_lr


def lower_rate(method: Method, lr: float) -> float:
    """Return the rate to suggest instead: the method's default, or a tenth of a rate that is not above it."""
    return method.default_lr if is_rate_high(method, lr) else lr / 10
