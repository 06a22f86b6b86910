"""ChatGLM-6B's two rules about a row of ids: where each token stands, and which tokens it sees.

All before <sop> (bos) is context: every token sees it. Row 0 of the positions is a token's place in the
context, and from bos on the place of the [MASK] or [gMASK] that is being filled; row 1 is 0 in the context
and counts 1, 2, 3, ... from bos. Source: huggingface.co/THUDM/chatglm-6b modeling_chatglm.py, `get_masks`,
`get_position_ids` and `prepare_inputs_for_generation` of the three revisions.
"""

import torch
from torch import Tensor
from torch.nn import functional

from glmtune.errors import DataError
from glmtune.models.chatglm_config import ChatGLM6BConfig


def count_positions(
    config: ChatGLM6BConfig, input_ids: Tensor, real: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Positions of whole rows, and those of the one new token that follows in each.

    input_ids and real (a token, not a pad; None: all are): (B, T). Results: (B, 2, T) and (B, 2, 1), or with
    `position_encoding_2d` off (B, T) and (B, 1). Pads on the left are at 0 and not counted. Raises DataError
    for a row without bos, or without a mask token before it.
    """
    real = torch.ones_like(input_ids, dtype=torch.bool) if real is None else real.bool()
    places = (real.long().cumsum(dim=-1) - 1).clamp(min=0)  # (B, T), over the tokens alone
    steps = torch.arange(input_ids.shape[1], device=input_ids.device)
    bos, has_bos = _find(input_ids, config.bos_token_id, real)  # (B, 1) each
    is_context = steps < bos
    mask_at, has_mask, fills_gmask = _find_mask_token(config, input_ids, real & is_context)
    _require(config, has_bos & has_mask, has_bos)
    filled = places.gather(1, mask_at)
    if not config.position_encoding_2d:
        # officially a [gMASK]'s answer counts on when it is read whole, and stands still when it is written
        return places.where(is_context | fills_gmask, filled), filled
    block = (steps - bos + 1).clamp(min=0)
    keeps_place = is_context
    if config.revision == "early":  # bos itself stays at its own place there
        keeps_place = is_context | (fills_gmask & (steps == bos))
    rows = torch.stack((places.where(keeps_place, filled), block), dim=1)
    return rows, torch.stack((filled, block[:, -1:] + 1), dim=1)


def _find_mask_token(
    config: ChatGLM6BConfig, input_ids: Tensor, context: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Index of the mask token that is filled, whether there is one, and whether it is [gMASK]; (B, 1) each.

    Where both are in the context late takes the first [gMASK], early and mid the first [MASK].
    """
    (mask_at, has_mask), (gmask_at, has_gmask) = (_find(input_ids, i, context) for i in config.mask_ids)
    fills_gmask = has_gmask if config.revision == "late" else ~has_mask
    return gmask_at.where(fills_gmask, mask_at), has_mask | has_gmask, fills_gmask


def _find(input_ids: Tensor, token: int, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first `token` of each row where it is allowed (0: there is none), and whether; (B, 1)."""
    found = ((input_ids == token) & allowed).max(dim=-1, keepdim=True)
    return found.indices, found.values


def _require(config: ChatGLM6BConfig, is_told: Tensor, has_bos: Tensor) -> None:
    if bool(is_told.all()):
        return
    row = int(is_told[:, 0].long().argmin())
    problem = f"no <sop> (id {config.bos_token_id})"
    if bool(has_bos[row]):
        problem = "no [MASK] or [gMASK] (ids {} and {}) before <sop>".format(*config.mask_ids)
    raise DataError(
        f"input_ids, row {row}: {problem}, so its positions cannot be told",
        hint="encode with the folder's own tokenizer; when decoding step by step pass position_ids",
    )


def build_mask(
    config: ChatGLM6BConfig, input_ids: Tensor, attention_mask: Tensor | None, *, past: int, width: int
) -> Tensor | None:
    """What each new token may see, (B or 1, 1, T, width), true = may; None = everything.

    input_ids: (B, T), on top of `past` cached tokens; attention_mask: (B, past + T), 1 = a token. Context is
    what comes before the bos in `input_ids`; without one they go on after a bos in the cache. A pad sees
    everything: a row that saw nothing would be NaN in some kernels.
    """
    new = input_ids.shape[1]
    if attention_mask is None and new == 1 and width == past + 1:
        return None
    columns = torch.arange(width, device=input_ids.device)
    rows = past + torch.arange(new, device=input_ids.device)[:, None]
    may_see = (columns <= rows)[None]  # (1, T, width)
    real = None if attention_mask is None else attention_mask.bool()
    if new > 1:
        is_bos = input_ids == config.bos_token_id
        bos = (
            (is_bos if real is None else is_bos & real[:, past:]).max(dim=-1).indices
        )  # 0: none, or no context
        may_see = may_see | (columns < past + bos[:, None, None])
    if real is not None:
        seen = functional.pad(real, (0, width - real.shape[1]))
        may_see = (may_see & seen[:, None]) | ~real[:, past:, None]
    return may_see[:, None]


def read_official_mask(attention_mask: Tensor, width: int, *, new: int, prefix: int) -> Tensor:
    """What each of `new` tokens may see, by an official mask (B or 1, 1, T, S): boolean, true = *not* seen.

    All see the `prefix`, which the mask leaves out. Raises DataError for a mask of another kind.
    """
    _check_official(attention_mask, new)
    seen = functional.pad(~attention_mask, (prefix, 0), value=True)
    may_see = functional.pad(seen, (0, width - seen.shape[-1]))
    return may_see | ~may_see.any(dim=-1, keepdim=True)  # a pad sees everything


def official_tokens(attention_mask: Tensor, *, new: int) -> Tensor:
    """A 2-D mask (B, S), 1 = a token, by an official mask of `new` tokens: a pad is what nobody sees.

    Raises DataError for a mask of another kind.
    """
    _check_official(attention_mask, new)
    return (~attention_mask[:, 0].all(dim=-2)).long()


def _check_official(mask: Tensor, new: int) -> None:
    if mask.dtype != torch.bool:
        raise _other_mask(f"4-D and {mask.dtype}")
    if mask.shape[1] != 1 or mask.shape[2] != new:
        raise _other_mask(f"shape {tuple(mask.shape)} for {new} new tokens")
    # a pad sees nothing; whoever sees something sees itself
    hides_itself = mask.diagonal(mask.shape[-1] - new, -2, -1) & ~mask.all(dim=-1)  # (B or 1, 1, T)
    blind = hides_itself.flatten(1).any(dim=-1)
    if bool(blind.any()):
        raise _other_mask(f"row {int(blind.long().argmax())}: a token does not see itself")


def _other_mask(found: str) -> DataError:
    return DataError(
        f"attention_mask: {found}; the official 4-D one is (B or 1, 1, T, S), boolean, true = not seen",
        hint="pass a 2-D mask (1 = a token) or none: the model builds its own",
    )


def check_positions(config: ChatGLM6BConfig, position_ids: Tensor, *, batch: int, new: int) -> None:
    """Raise DataError unless positions are (B or 1, 2, T), without `position_encoding_2d` (B or 1, T)."""
    rest = (2, new) if config.position_encoding_2d else (new,)
    shape = tuple(position_ids.shape)
    if shape not in ((batch, *rest), (1, *rest)):
        expected = ", ".join(map(str, rest))
        raise DataError(
            f"position_ids: shape {shape}, expected ({batch} or 1, {expected})",
            hint="leave position_ids out, or take them from model.count_positions(input_ids, attention_mask)",
        )
