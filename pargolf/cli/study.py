"""The commands that look at finished runs and make many of them: one function a command, no logic."""

from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from pargolf.cli.parse import OptionalFloat, OptionalPath, OptionalText, Paths, RunArgs, parse, preset_args
from pargolf.system.errors import require

# SciPy and PyTorch are imported inside the commands that need them, as in the other modules.


@dataclass
class AnalyzeArgs:
    """Singular values and ranks of a run's matrices, quantization errors, mixes and gains by depth.

    Prints tables, and writes analysis.json and analysis.svg into the run's folder.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder, with a checkpoint, a model.pgz, or both."""
    energy_loss: float = 0.01
    """Share of a matrix's energy (squared Frobenius norm) that its needed rank may leave out."""
    all: bool = False
    """List every matrix, of checkpoint and artifact, instead of one row a role."""


@dataclass
class CompareArgs:
    """Compare groups of finished runs with a baseline group, or with a published figure."""

    runs: tyro.conf.Positional[Paths] = ()
    """Folders of runs and of studies; runs that differ in seed, paths and machine alone are one group. A
    screen alone shows its effects."""
    baseline: OptionalText = ""
    """The group to compare with: a run of it, settings ("model.q_rank=0") or a stack ("demo+legendre-mix");
    default: the first run's."""
    against: OptionalFloat = None
    """Compare with this published val_bpb, and not with a group."""
    values: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Published val_bpb, one a seed ("1.1548,1.1552,1.1575"), as one more group."""
    bytes_per_token: OptionalFloat = None
    """Mean bytes of a token of the published runs' tokenizer, to turn their val_bpb into nats a token."""
    repeats: OptionalPath = None
    """For a screen: folder of runs that differ in their seed alone; their spread is taken for chance, and not
    what the effects leave unexplained."""
    json: OptionalPath = None
    """Also write the comparison to this file."""


@dataclass
class AblateArgs(RunArgs):
    """Run a grid of variations of PRESET over several seeds, and compare. Finished runs are not run again."""

    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting and its values ("model.q_rank=0,32"), settings that change together, joined by "+"
    ("model.d_model=128+model.n_heads=4,model.d_model=192+model.n_heads=6"), or overlays to lay over the
    preset, "base" being none ("base,+legendre-mix,+legendre-mix+spectral-embed"); several make a grid."""
    one_at_a_time: bool = False
    """Instead of the grid, run the preset and each value of each --vary alone."""
    screen: bool = False
    """Instead of the grid, two runs a seed, each with about half of all changes: what each --vary does beside
    its first alternative, for many at once. As --seeds a power of two above the number of --vary."""
    seeds: int = 3
    """Runs of each variation, with the random seeds train.seed, train.seed + 1, ..."""
    jobs: int = 1
    """Runs at once; they share the cores."""

    @property
    def _purpose(self) -> tuple[str, ...]:
        return ("ablate", *(text.partition("=")[0] for text in self.vary))


@dataclass
class SweepArgs(RunArgs):
    """Search settings of PRESET with Optuna for a low val_bpb in few bytes, within the budget."""

    search: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting and where to look: "field=a,b,c", "field=low:high", "field=low:high:step" or
    "field=low:high:log"; or overlays to choose from, "base,+a,+a+b"."""
    trials: int = 20
    """Trials of the study in all, with those that it already has."""
    jobs: int = 1
    """Runs at once; they share the cores."""
    by_prediction: bool = False
    """Also stop a trial whose val_loss is predicted to end, at its best, above the best finished trial's."""
    storage: OptionalText = ""
    """URL of a database that several machines share; default: study.db in the study's folder."""

    @property
    def _purpose(self) -> tuple[str, ...]:
        return ("sweep", *(text.partition("=")[0] for text in self.search))


@dataclass
class PredictArgs:
    """Where the validation loss of runs will end, with an interval that 9 of 10 runs end in.

    Knows the rest of the learning rate's schedule. Runs may be unfinished, finished or imported.
    """

    runs: tyro.conf.Positional[Paths]
    """Folders of runs."""
    at: float = 1.0
    """Look at this share of the steps alone: of a finished run, to see the prediction beside the truth."""
    beside: Paths = ()
    """Finished runs or studies; those that saw the same batches make the prediction sharper."""
    warmdown: float = 0.0
    """Warm-down of a run that does not name it: steps, or a share of the run up to 1."""
    weight_decay: OptionalFloat = None
    """Muon's weight decay of a run that does not name it; default: 0."""
    json: OptionalPath = None
    """Also write the predictions to this file."""


@dataclass
class ReportArgs:
    """Write one HTML page about a run: score, curves, bytes, weights, passages, samples; opens anywhere."""

    runs: tyro.conf.Positional[Paths]
    """Folders of runs and of studies; the page is about the first run, of a sweep about the best, and
    compares it with the others."""
    out: OptionalPath = None
    """File to write; default: report.html in the first run's folder."""
    tokens: int = 2_000_000
    """Validation tokens to look at one by one, from the first on."""
    dataset: OptionalPath = None
    """Folder of the validation shards; default: the run's."""
    watch: int = 0
    """Write the page of a running run anew every so many seconds, until the run ends; the page reloads
    itself. 0: write it once."""
    csv: OptionalPath = None
    """Also write curves of the run that the page is about to this file: losses, rates, seconds and scores by
    step."""


def analyze(argv: list[str]) -> None:
    """Show the ranks of a run's matrices, quantization errors, mixes and gains by depth."""
    args = parse(AnalyzeArgs, argv, "pargolf analyze")
    from pargolf.analysis import plots
    from pargolf.analysis.weights import analyze_run, save_analysis
    from pargolf.cli import weight_tables as tables
    from pargolf.system.console import console

    analysis = analyze_run(args.run, args.energy_loss)
    save_analysis(args.run, analysis)
    plots.save_overview(args.run, analysis)
    tables.show_analysis(analysis, args.all)
    console.print(f"written: {args.run}/analysis.json, analysis.svg", highlight=False, soft_wrap=True)


def compare(argv: list[str]) -> None:
    """Compare runs: means over seeds, differences from a baseline, and their p-values."""
    args = parse(CompareArgs, argv, "pargolf compare")
    from pargolf.cli.study_tables import show_comparison, show_screen
    from pargolf.study.compare import compare, read_published, to_json
    from pargolf.study.records import read_records
    from pargolf.study.screen import is_screen, read_screen
    from pargolf.system.files import write_json

    if len(args.runs) == 1 and is_screen(args.runs[0]):
        others = (args.baseline, args.against, args.values, args.bytes_per_token)
        require(
            others == ("", None, (), None),
            "a screen has its own baseline and takes --repeats and --json alone",
        )
        screen = read_screen(args.runs[0], args.repeats)
        show_screen(screen, args.repeats is not None)
        if args.json:
            write_json(args.json, asdict(screen))
        return
    require(args.repeats is None, "--repeats is for a screen, named alone")
    records = read_records(args.runs)
    for values in args.values:
        records += read_published(values, args.bytes_per_token)
    comparison = compare(records, args.baseline, args.against)
    show_comparison(comparison)
    if args.json:
        write_json(args.json, to_json(comparison))


def ablate(argv: list[str]) -> None:
    """Run a grid of settings and overlays over several seeds, and compare the results."""
    args = preset_args(AblateArgs, argv, "ablate")
    from pargolf.cli.study_tables import show_comparison, show_screen
    from pargolf.study.ablate import ablate, read_axis
    from pargolf.study.screen import screen

    axes = [read_axis(text) for text in args.vary]
    if args.screen:
        require(not args.one_at_a_time, "--screen and --one-at-a-time are two ways to go; choose one")
        show_screen(screen(args.config, args.folder, axes, args.seeds, args.jobs))
    else:
        show_comparison(ablate(args.config, args.folder, axes, args.seeds, args.jobs, args.one_at_a_time))


def sweep(argv: list[str]) -> None:
    """Search settings for a low val_bpb in few bytes, and show the Pareto front."""
    args = preset_args(SweepArgs, argv, "sweep")
    from pargolf.cli.study_tables import show_front
    from pargolf.study.sweep import read_search, sweep

    search = dict(read_search(text) for text in args.search)
    show_front(
        sweep(args.config, args.folder, search, args.trials, args.storage, args.by_prediction, args.jobs)
    )


def predict(argv: list[str]) -> None:
    """Where the validation loss of a run will end, from the curve so far."""
    args = parse(PredictArgs, argv, "pargolf predict")
    from pargolf.cli.study_tables import show_predictions
    from pargolf.study.predict import predict, read_curve
    from pargolf.study.records import runs_in
    from pargolf.system.files import write_json

    require(args.warmdown >= 0, f"--warmdown must be steps or a share, is {args.warmdown}")
    others = [run for folder in args.beside for run in runs_in(folder)]
    found = []
    for run in args.runs:
        beside = [other for other in others if other.resolve() != run.resolve()]
        curves = [read_curve(folder, args.warmdown, args.weight_decay) for folder in (run, *beside)]
        found.append(predict(curves[0], args.at, curves[1:]))
    show_predictions(found)
    if args.json:
        write_json(args.json, {"predictions": [asdict(prediction) for prediction in found]})


def report(argv: list[str]) -> None:
    """Write one HTML page about a run, or about several side by side."""
    args = parse(ReportArgs, argv, "pargolf report")
    from pargolf.analysis.report import write_report

    require(args.watch >= 0, f"--watch must be a number of seconds, is {args.watch}")
    try:
        print(write_report(args.runs, args.out, args.tokens, args.dataset, args.watch, args.csv))
    except KeyboardInterrupt:
        if not args.watch:
            raise
