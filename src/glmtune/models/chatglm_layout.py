"""Positions and attention masks of ChatGLM-6B, computed from a row's ids.

All before <sop> (bos) is context, seen by every token; from bos on attention is causal. Row 0 of the
positions is a token's index in the context, and from bos on the index of the [MASK] or [gMASK] that is being
filled; row 1 is 0 in the context and counts 1, 2, 3, ... from bos.
Source: huggingface.co/THUDM/chatglm-6b modeling_chatglm.py, `get_masks`, `get_position_ids` and
`prepare_inputs_for_generation` of the three revisions. Shapes: B batch, T new tokens, S cached + new tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional

from glmtune.errors import DataError
from glmtune.models.chatglm_config import ChatGLM6BConfig


def count_positions(
    config: ChatGLM6BConfig, input_ids: Tensor, real: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the positions of whole rows, and of the one new token that follows each row.

    input_ids and real (True: a token, not a pad; None: all are): (B, T). Results: (B, 2, T) and (B, 2, 1), or
    with `position_encoding_2d` off (B, T) and (B, 1). Pads on the left are at 0 and not counted. Raises
    DataError for a row without bos, or without a mask token before it.
    """
    real = torch.ones_like(input_ids, dtype=torch.bool) if real is None else real.bool()
    indices = (real.long().cumsum(dim=-1) - 1).clamp(min=0)  # (B, T), of the tokens alone
    steps = torch.arange(input_ids.shape[1], device=input_ids.device)
    bos, has_bos = _find(input_ids, config.bos_token_id, real)  # (B, 1) each
    is_context = steps < bos
    mask, gmask = (_find(input_ids, i, real & is_context) for i in config.mask_ids)  # index, is there
    # with both in the context late fills the first [gMASK], early and mid the first [MASK]
    fills_gmask = gmask[1] if config.revision == "late" else ~mask[1]
    is_complete = has_bos & (mask[1] | gmask[1])
    if not bool(is_complete.all()):
        row = int(is_complete[:, 0].long().argmin())
        problem = f"no <sop> (id {config.bos_token_id})"
        if bool(has_bos[row]):
            problem = "no [MASK] or [gMASK] (ids {} and {}) before <sop>".format(*config.mask_ids)
        raise DataError(
            f"input_ids, row {row}: {problem}, so its positions cannot be told",
            hint="encode with the folder's own tokenizer; when decoding step by step pass position_ids",
        )
    filled = indices.gather(1, gmask[0].where(fills_gmask, mask[0]))  # (B, 1): position of the mask token
    if not config.position_encoding_2d:
        # an official quirk: a [gMASK]'s answer counts on in prefill, but keeps one position in decode
        return indices.where(is_context | fills_gmask, filled), filled
    block = (steps - bos + 1).clamp(min=0)
    keeps_index = is_context
    if config.revision == "early":  # there bos itself keeps its own index
        keeps_index = is_context | (fills_gmask & (steps == bos))
    rows = torch.stack((indices.where(keeps_index, filled), block), dim=1)  # (B, 2, T)
    return rows, torch.stack((filled, block[:, -1:] + 1), dim=1)


def _find(input_ids: Tensor, token: int, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of the first allowed `token` of each row (0: none), and True where there is one."""
    # max gives the first of equal values: True is larger than False
    found = ((input_ids == token) & allowed).max(dim=-1, keepdim=True)  # (B, 1)
    return found.indices, found.values


def count_contexts(config: ChatGLM6BConfig, input_ids: Tensor, lengths: list[int]) -> tuple[int, ...]:
    """Return the number of tokens before the first bos of each of the packed rows in input_ids (T,)."""
    firsts = [(ids == config.bos_token_id).max(dim=0).indices for ids in torch.split(input_ids, lengths)]
    return tuple(torch.stack(firsts).tolist())  # 0 for no bos, as in `build_mask`


def build_mask(
    config: ChatGLM6BConfig, input_ids: Tensor, attention_mask: Tensor | None, *, past: int, width: int
) -> Tensor | None:
    """Return the mask (B or 1, 1, T, width) of new tokens, true = may see; None = see everything.

    input_ids: (B, T), after `past` cached tokens; attention_mask: (B, past + T), 1 = a token. The tokens
    before the bos in `input_ids` are context; ids without bos continue an answer whose bos is cached.
    """
    new = input_ids.shape[1]
    if attention_mask is None and new == 1 and width == past + 1:
        return None
    columns = torch.arange(width, device=input_ids.device)
    rows = past + torch.arange(new, device=input_ids.device)[:, None]
    may_see = (columns <= rows)[None]  # (1, T, width), causal
    real = None if attention_mask is None else attention_mask.bool()
    if new > 1:
        is_bos = input_ids == config.bos_token_id
        # (B,); index 0 for no bos as well as for an empty context: then nothing is added to the triangle
        bos = (is_bos if real is None else is_bos & real[:, past:]).max(dim=-1).indices
        may_see = may_see | (columns < past + bos[:, None, None])  # (B, T, width)
    if real is not None:
        seen = functional.pad(real, (0, width - real.shape[1]))
        # a pad sees everything: a row that saw nothing would be NaN in some kernels
        may_see = (may_see & seen[:, None]) | ~real[:, past:, None]
    return may_see[:, None]


def read_official_mask(attention_mask: Tensor, width: int, *, new: int, prefix: int) -> Tensor:
    """Return the mask (B or 1, 1, T, width), true = may see, from an official one, true = *not* seen.

    attention_mask: (B or 1, 1, T, S), boolean, without the `prefix`, which every token sees. Raises DataError
    for a mask of another kind.
    """
    _check_official(attention_mask, new)
    seen = functional.pad(~attention_mask, (prefix, 0), value=True)
    may_see = functional.pad(seen, (0, width - seen.shape[-1]))
    return may_see | ~may_see.any(dim=-1, keepdim=True)  # a pad sees everything


def official_tokens(attention_mask: Tensor, *, new: int) -> Tensor:
    """Return the 2-D mask (B, S), 1 = a token, of an official 4-D mask of `new` tokens.

    Raises DataError for a mask of another kind.
    """
    _check_official(attention_mask, new)
    return (~attention_mask[:, 0].all(dim=-2)).long()  # a column that no token sees is a pad


def _check_official(mask: Tensor, new: int) -> None:
    if mask.dtype != torch.bool:
        raise _other_mask(f"4-D and {mask.dtype}")
    if mask.shape[1] != 1 or mask.shape[2] != new:
        raise _other_mask(f"shape {tuple(mask.shape)} for {new} new tokens")
    # a pad sees nothing; a token that sees anything sees itself
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
    """Raise DataError unless positions are (B or 1, 2, T), or (B or 1, T) without `position_encoding_2d`."""
    rest = (2, new) if config.position_encoding_2d else (new,)
    shape = tuple(position_ids.shape)
    if shape not in ((batch, *rest), (1, *rest)):
        expected = ", ".join(map(str, rest))
        raise DataError(
            f"position_ids: shape {shape}, expected ({batch} or 1, {expected})",
            hint="leave position_ids out, or take them from model.count_positions(input_ids, attention_mask)",
        )
