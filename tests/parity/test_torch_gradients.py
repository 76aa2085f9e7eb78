"""Gradients of whole models on the torch backend: those of transformers for one config of each kind of block, and a
student that learns. On the CPU, and on a GPU where torch sees one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import make_parity
import tiny
from families import llama
from ridgeline.weights.load import open_checkpoint

torch = pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")
from ridgeline.backends.torch_eager import Torch  # noqa: E402

pytestmark = pytest.mark.parity
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_GPU)]
BOUND = 1e-4  # of a tensor's largest gradient
CONFIGS = ("llama", "qwen3", "mistral", "gpt2", "bloom", "gemma2", "gemma3", "falcon7", "phi3")


def nll(logits, ids):
    """Mean negative log-likelihood of each next id."""
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:], device=logits.device))


def as_held(c, name, x):
    """A tensor of a Hugging Face checkpoint, with rows and columns as the loader puts them.

    That is as GGUF files have them, but for Llama's pairs of rows.
    """
    if c["model_type"] in llama.MODEL_TYPES:
        return x
    return torch.from_numpy(tiny.gguf_tensors(c, {name: x.numpy()})[tiny.gguf_name(c, name)])


def place_in(weights, wanted):
    """(name, first row) of the weight that holds the rows of a tensor: q, k and v are merged in ours."""
    for name, w in weights.items():
        if w.shape[1:] == wanted.shape[1:]:
            for start in range(len(w) - len(wanted) + 1):
                if torch.equal(w[start : start + len(wanted)].cpu(), wanted):
                    return name, start
    raise AssertionError(f"no weight of ours holds a tensor of shape {tuple(wanted.shape)}")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_transformers(tmp_path, name, device):
    pytest.importorskip("transformers", reason="transformers is not installed (the extra `parity`)")
    c, ids = tiny.CONFIGS[name], [i or 1 for i in tiny.prompt(100)]  # 0 pads: transformers gives its row no gradient
    tensors = tiny.weights(c)
    theirs = make_parity.transformers_model(c, tensors)
    nll(theirs(torch.tensor([ids])).logits[0], ids).backward()

    step = tiny.compile_model(open_checkpoint(tiny.write_hf(tmp_path / "m", c, tensors)), Torch(device))
    trained = {w.name for w in step.program.weights.values() if w.constant is None}
    for ours in trained:
        step.weights[ours].requires_grad_()
    nll(tiny.Runner(SimpleNamespace(run=step.logits), step.layout).feed(ids), ids).backward()
    seen = set()
    for stored, p in theirs.named_parameters():
        wanted, grad = (as_held(c, stored, x) for x in (p.detach(), p.grad))
        grad = grad - as_held(c, stored, torch.zeros_like(p))  # without the 1 that norms of Gemma gain
        ours, start = place_in(step.weights, wanted)
        got = step.weights[ours].grad[start : start + len(wanted)].cpu()
        assert p.grad.abs().max() > 0, stored
        assert (got - grad).abs().max() <= BOUND * grad.abs().max(), stored
        seen.add(ours)
    assert seen == trained


def test_a_student_learns(tmp_path):
    """A few steps of plain torch on two weights: the loss falls, and so does the one that `run` then sees."""
    c, ids = tiny.CONFIGS["smollm"], tiny.prompt(40)
    step = tiny.compile_model(open_checkpoint(tiny.write_hf(tmp_path / "m", c, tiny.weights(c))), Torch())
    student = [step.weights[name].requires_grad_() for name in list(step.weights)[-2:]]
    descent, losses = torch.optim.SGD(student, lr=0.05), []
    for _ in range(4):
        loss = nll(tiny.Runner(SimpleNamespace(run=step.logits), step.layout).feed(ids), ids)
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    result = tiny.Runner(step, step.layout).feed(ids)
    assert nll(torch.tensor(result.logits), ids) < losses[-1]
