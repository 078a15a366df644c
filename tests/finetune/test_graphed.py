"""What is recorded does what it is a record of."""

import copy

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from monai_attention.finetune.graphed import Recorded, RecordedUpdate
from monai_attention.finetune.loss import PartialDiceCE
from monai_attention.finetune.optimizers import MuonAdamW

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


def batches(device, number=6):
    generator = torch.Generator().manual_seed(0)
    for _ in range(number):
        image = torch.rand(2, 1, 8, 8, 8, generator=generator)
        yield {"image": image.to(device), "label": (image > 0.5).long().to(device)}


def trained(device, update):
    """A small network after some steps, and the loss of each."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.GELU(), nn.Conv3d(8, 8, 1), nn.Conv3d(8, 2, 1)).to(device)
    trainer = SupervisedTrainer(
        device=torch.device(device),
        max_epochs=2,
        train_data_loader=list(batches(device)),
        network=network,
        optimizer=MuonAdamW(network.named_parameters(), outer=["0.", "3."], lr=0.01),
        loss_function=PartialDiceCE(log_dice=True),
        iteration_update=update,
    )
    losses = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def _():
        losses.append(float(trainer.state.output[0]["loss"]))

    trainer.run()
    return network, losses


@pytest.mark.parametrize("device", DEVICES)
def test_recorded_steps_are_the_trainer_s_own(device):
    network, losses = trained(device, RecordedUpdate())
    plain, expected = trained(device, None)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert len(set(losses)) == 12
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, plain.get_parameter(name), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES[1:])  # on a CPU nothing is replayed
def test_gradients_that_others_reset_between_two_steps_come_back(device):
    class Forgetful(RecordedUpdate):
        def __call__(self, engine, batchdata):
            engine.optimizer.zero_grad(set_to_none=True)
            return super().__call__(engine, batchdata)

    _, losses = trained(device, Forgetful())
    _, expected = trained(device, RecordedUpdate())
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("setting", [{"amp": True}, {"accumulation_steps": 2}])
def test_trainers_whose_steps_are_others_are_refused(setting):
    network = nn.Conv3d(1, 2, 1)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=list(batches("cpu")),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters()),
        loss_function=PartialDiceCE(),
        iteration_update=RecordedUpdate(),
        **setting,
    )
    with pytest.raises(ValueError, match="expected a trainer without amp that steps after every batch"):
        trainer.run()


@pytest.mark.parametrize("device", DEVICES)
def test_a_recorded_function_is_of_what_it_is_given_now(device):
    calls = []
    double = Recorded(lambda x, y: (calls.append(1), [2 * x, x + y])[1])
    for value in (1.0, 3.0):
        x = torch.full((4,), value, device=device)
        twice, both = copy.deepcopy(double(x, 10 * x))
        assert twice.tolist() == [2 * value] * 4
        assert both.tolist() == [11 * value] * 4
    assert len(calls) == (2 if device == "cpu" else 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_other_shapes_than_those_recorded_are_refused():
    double = Recorded(lambda x: 2 * x)
    double(torch.ones(3, device="cuda"))
    with pytest.raises(ValueError, match=r"expected tensors of the same shapes every time, \[\(3,\)\]; got \[\(4,\)\]"):
        double(torch.ones(4, device="cuda"))
