"""The learning rate of a run beside its method's own."""

from glmtune.recipe import Method, Recipe


def with_default_rate(recipe: Recipe) -> Recipe:
    """The recipe with its method's learning rate where it names none: what a run does and records."""
    if recipe.train.lr is not None:
        return recipe
    train = recipe.train.model_copy(update={"lr": recipe.method.default_lr})
    return recipe.model_copy(update={"train": train})


def rate_line(method: Method, lr: float) -> str:
    """The learning rate, and its method's default with where that is from; what others take, help says."""
    default = f"the default of {method.name} ({method.lr_source.partition(';')[0]})"
    if lr == method.default_lr:
        return f"learning rate: {lr:g}, {default}"
    return f"learning rate: {lr:g}; {method.default_lr:g} is {default}"


def is_rate_high(method: Method, lr: float) -> bool:
    """Whether the learning rate is above the method's default."""
    return lr > method.default_lr


def lower_rate(method: Method, lr: float) -> float:
    """The rate to fall back to: the method's default, or a tenth of what is no higher than that."""
    return method.default_lr if is_rate_high(method, lr) else lr / 10
