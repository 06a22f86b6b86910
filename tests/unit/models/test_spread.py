"""One model over several devices: the same answers with the hooks of accelerate's map of its parts."""

import pytest
import torch
from accelerate import dispatch_model

from closeness import assert_close
from glmtune import load_model
from glmtune.errors import ConfigError
from glmtune.generate import Sampling, complete
from glmtune.models.device import resolve_device
from glmtune.recipe.distributed import Ddp
from glmtune.workflows.plan import start_processes

IDS = [5, 6, 7, 8, 9]


def test_a_model_whose_parts_hand_on_between_devices_answers_as_before() -> None:
    """The hooks of a map over cards, on the one device that is here."""
    plain, spread = load_model("glm-tiny", device="cpu"), load_model("glm-tiny", device="cpu")
    sampling = Sampling(do_sample=False, max_new_tokens=4)
    before = complete(plain, [IDS], sampling, stop_ids=())
    dispatch_model(spread, {"": "cpu"}, force_hooks=True)
    assert any(hasattr(part, "_hf_hook") for part in spread.modules())
    assert complete(spread, [IDS], sampling, stop_ids=()) == before
    ids = torch.tensor([IDS])
    assert_close(spread(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_balanced_without_a_card_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(ConfigError, match="device: balanced spreads a model over several cards"):
        resolve_device("balanced")


def test_training_takes_no_balanced_device() -> None:
    with pytest.raises(ConfigError, match="training takes auto, cpu or cuda") as told:
        start_processes("balanced", Ddp())
    assert "distributed=fsdp2" in told.value.hint
