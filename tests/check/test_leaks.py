"""Validation data followed through code: what is certain, what is only suspected, what is in order."""

import textwrap

import pytest

from pargolf.check.leaks import Leaks, find_leaks
from pargolf.check.sources import read_source

PREAMBLE = """
import glob, os, torch
train_files = os.path.join(path, "fineweb_train_*.bin")
val_files = os.path.join(path, "fineweb_val_*.bin")

def evaluate(model, val_tokens):
    total = 0.0
    with torch.no_grad():
        for i in range(0, val_tokens.numel(), 1024):
            total += model(val_tokens[i : i + 1024])
    return total

def adapt(model, tokens):
    for epoch in range(3):
        loss = model(tokens)
        loss.backward()
"""


def leaks(code: str) -> Leaks:
    return find_leaks(read_source((PREAMBLE + textwrap.dedent(code)).encode()))


IN_ORDER = {
    "plain training": """
        def main():
            val_tokens = load(val_files)
            train_loader = Loader(train_files)
            for step in range(10):
                if step % 5 == 0:
                    val_loss = evaluate(model, val_tokens)
                x, y = train_loader.next_batch()
                loss = model(x, y)
                loss.backward()
            print(evaluate(model, val_tokens))
        """,
    "scoring what was quantized": """
        def eval_gptq(model, val_tokens):
            return model(val_tokens).item()
        def main():
            val_tokens = load(val_files)
            print(eval_gptq(model, val_tokens))
        """,
    "one batch function for both splits": """
        def get_batch(split):
            data = train_data if split == "train" else val_data
            return data[:10], data[1:11]
        X, Y = get_batch("train")
        loss = model(X, Y)
        loss.backward()
        """,
    "a name that is used again": """
        def main():
            x = load(val_files)
            evaluate(model, x)
            x = load(train_files)
            model(x).backward()
        """,
    "only sizes": """
        def main():
            steps = len(val_tokens) // val_tokens.shape[0] + val_tokens.numel()
            (model(x) * steps).backward()
        """,
    "one object for both": """
        data = Data(open_split(folder, "train"), open_split(folder, "val"))
        batches = Batches(data.train)
        model(batches.next()).backward()
        """,
    "either of two": """
        def main(split):
            if split:
                x = train_tokens
            else:
                x = val_tokens
            model(x).backward()
        """,
    "a trained model is no validation data": """
        def fit(h, val_data):
            model = GPT(h)
            return model, evaluate(model, val_data)
        def main():
            model, score = fit(h, val_data)
            collect_hessians(model, train_loader)
        """,
    "both splits at once": """
        train_data, val_data = load(train_files, val_files)
        train_tokens, val_tokens = load(path, "train"), load(path, "val")
        loaders = make(train_files, val_files)
        train_files = [f for f in glob.glob("fineweb_*.bin") if "val" not in f]
        """,
    "calibration on training data": "data = Loader(train_files)\ncollect_hessians(model, data)",
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_what_is_in_order(name: str) -> None:
    found = leaks(IN_ORDER[name])
    assert found == Leaks(sees_shards=True)


TRAINING = [
    "train_loader = Loader(val_files)",
    "train_loader = Loader(args.val_files)",
    "train_tokens = torch.cat([load(f) for f in glob.glob(path + '/fineweb_val_000000.bin')])",
    "train_files = sorted(glob.glob(f'{path}/fineweb_*.bin'))",
    "run(model, train_data=load(val_files))",
    "train = open_split(folder, 'val')",
    "self.train_tokens = self.val_tokens",
    "pattern = val_files\nfiles = glob.glob(pattern)\ntrain_shards = [load(f) for f in files]",
    "gptq_calibrate(model, val_tokens)",
    "class A:\n    V = 'fineweb_val_*.bin'\n    train_files = V",
    "calib_data = val_tokens[:100]",
]


@pytest.mark.parametrize("code", TRAINING)
def test_training_on_validation_data(code: str) -> None:
    found = leaks(code)
    assert len(found.training) == 1, found
    assert not found.late
    under_a_condition = leaks("if args.overfit:\n" + textwrap.indent(code, "    "))
    assert len(under_a_condition.perhaps_training) == 1, found
    assert not under_a_condition.training


LATE = {
    "adapted, then scored": """
        def main():
            val_tokens = load(val_files)
            adapt(model, val_tokens)
            evaluate(model, val_tokens)
        """,
    "scored, adapted, scored again": """
        def main():
            tokens = load(val_files)
            evaluate(model, tokens)
            adapt(model, tokens)
            return evaluate(model, tokens)
        """,
    "through functions": """
        def step(batch):
            scaler.scale(model(batch)).backward()
        def tune(stream):
            for part in stream:
                step(part)
        def main(self):
            tune(self.val_tokens)
            score = evaluate(model, self.val_tokens)
        """,
    "a decorated scorer": """
        @torch.inference_mode()
        def score(stream):
            total = 0
            for part in stream:
                total += model(part)
            return total
        adapt(model, val_data)
        score(val_data)
        """,
    "minified": """
        def f(A,B):
            C=B[1:];D=A(C);D.backward()
        def main():A=load(val_files);f(M,A);B=evaluate(M,A);print(B)
        """,
}


@pytest.mark.parametrize("name", LATE)
def test_scored_after_training(name: str) -> None:
    found = leaks(LATE[name])
    assert len(found.late) == 1, found
    assert not found.training


ADAPTING = {
    "scored first, chunk by chunk": """
        def ttt(model, val_tokens):
            for chunk in val_tokens.split(1024):
                with torch.no_grad():
                    total += model(chunk)
                loss = model(chunk)
                loss.backward()
        def main():
            evaluate(model, val_tokens)
            ttt(model, val_tokens)
        """,
    "scored first, by functions": """
        def ttt(model, val_tokens):
            for chunk in val_tokens.split(1024):
                total = evaluate(model, chunk)
                adapt(model, chunk)
        """,
    "trained at the end": "evaluate(model, val_tokens)\nadapt(model, val_tokens)",
    # Its context was scored in the loop's last round, for all that can be seen.
    "a window's context, then the window": """
        for start in range(0, val_tokens.numel(), 64):
            window = val_tokens[start : start + 1024]
            bias_loss(model, window[:-64]).backward()
            with torch.no_grad():
                total += model(window).sum()
        """,
    "chunks by functions, one behind the other": """
        for chunk in val_tokens.split(1024):
            evaluate(model, chunk)
            adapt(model, chunk)
            evaluate(model, chunk)
        """,
    "compile warm-up on validation tokens": """
        x = val_tokens[:1024]
        torch.autograd.grad(model(x), parameters)
        evaluate(model, val_tokens)
        """,
    "only if it is asked for": """
        if args.adapt:
            adapt(model, val_tokens)
        evaluate(model, val_tokens)
        """,
    "a batch filled in place": """
        batch = torch.zeros(8, 1024)
        batch[0] = val_tokens[:1024]
        batch[1] = 0
        model(batch).backward()
        """,
}


@pytest.mark.parametrize("name", ADAPTING)
def test_test_time_training_is_only_suspicious(name: str) -> None:
    found = leaks(ADAPTING[name])
    assert found.perhaps_late, found
    assert (found.training, found.perhaps_training, found.late) == ([], [], [])


def test_code_that_names_no_shards() -> None:
    code = "for path in paths:\n    model(load(path)).backward()\n"
    assert not find_leaks(read_source(code.encode())).sees_shards


def test_packed_code_is_followed_too() -> None:
    source = read_source(f"exec({PREAMBLE + 'train_loader = Loader(val_files)'!r})".encode())
    assert find_leaks(source).training
