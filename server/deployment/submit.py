"""Submit a run to the sites and follow it until it ends."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from wardround.common.errors import RunFailed
from wardround.common.exits import ending_signals, leave_terminal
from wardround.common.places import project_file
from wardround.common.pretrained import weights_digest
from wardround.common.settings.model import ModelSettings
from wardround.common.settings.tree import Settings
from wardround.common.wire.roster import roster_fingerprint
from wardround.common.wire.signing import payload_digest
from wardround.common.words import pasteable
from wardround.server.compose import compose
from wardround.server.deployment import superlink
from wardround.server.deployment.folder import (
    RegisteredSite,
    ServerFolder,
    signing_key,
)
from wardround.server.deployment.follow import (
    RunEnd,
    RunWatch,
    follow,
)
from wardround.server.deployment.plan import keep_plan, plan_id, roster_of
from wardround.server.deployment.signing_request import (
    forget_run,
    request_run,
    take_signed_run,
)
from wardround.server.deployment.status import is_held
from wardround.server.deployment.ticket import leave_ticket, write_ticket
from wardround.server.display import display
from wardround.server.run_folder import RunFolder

_STOP_SECONDS = 20.0
_LOOK_SECONDS = 0.2


def submit(
    overrides: Sequence[str],
    folder: ServerFolder,
    *,
    resume: Path | None = None,
    sites: Sequence[str] = (),
) -> RunEnd:
    """Run one federation over the registered sites.

    Args:
        resume: a run folder whose settings are submitted again, instead of `overrides`.
        sites: names of the sites that take part; empty means all registered sites.

    Raises:
        ValueError: bad input; nothing was started.
        RunFailed: the SuperLink does not run, or does not answer any more.
        KeyboardInterrupt: interrupted; the run was stopped.
    """
    settings, chosen = _prepared(overrides, folder, resume, sites)
    return _run(folder, settings, chosen, lambda: start(folder, settings, chosen))


def request(
    overrides: Sequence[str],
    folder: ServerFolder,
    file: Path,
    *,
    resume: Path | None = None,
    sites: Sequence[str] = (),
) -> None:
    """Write the request to sign a run. Nothing is started.

    Args:
        file: path of the request. The other arguments are as for `submit`.

    Raises:
        ValueError: bad input.
        OSError: a file cannot be written.
    """
    settings, chosen = _prepared(overrides, folder, resume, sites)
    if not chosen:
        raise ValueError(
            "--unsigned needs registered sites, and this server has none. Leave --unsigned out."
        )
    draft = request_run(folder, settings, chosen, file)
    plan = payload_digest(draft.plan)[:12]
    display().say(f"{settings.cell}: {_roster_line(chosen)}")
    display().say(
        f"{settings.cell}: plan {plan} waits for its signature; the request is {file}"
    )


def submit_signed(file: Path, folder: ServerFolder) -> RunEnd:
    """Run a request that was signed on another machine. Raises as `submit` does."""
    draft = take_signed_run(folder, file)
    RunFolder(Path(draft.settings.run_dir)).check_owner(draft.settings)

    def start_draft() -> str:
        keep_plan(Path(draft.settings.run_dir), draft.plan)
        run_id = _start(folder, draft.settings, {"ticket": leave_ticket(folder, draft)})
        forget_run(folder, draft)
        return run_id

    return _run(folder, draft.settings, draft.sites, start_draft)


def _prepared(
    overrides: Sequence[str],
    folder: ServerFolder,
    resume: Path | None,
    wanted: Sequence[str],
) -> tuple[Settings, dict[str, RegisteredSite]]:
    """Return the settings of a run and its sites by name. Raises ValueError if they do not
    match."""
    if resume:
        settings = settings_to_resume(resume, overrides)
    else:
        settings = settings_to_submit(overrides)
    RunFolder(Path(settings.run_dir)).check_owner(settings)
    chosen = choose_sites(folder, wanted, settings.num_clients)
    registered = folder.sites()
    sites = {name: registered[name] for name in chosen}
    roster_of(sites)  # refuses sites with the same key
    return settings, sites


def _run(
    folder: ServerFolder,
    settings: Settings,
    sites: Mapping[str, RegisteredSite],
    start_run: Callable[[], str],
) -> RunEnd:
    """Start a run and follow it until it ends. Raises as `submit` does.

    Args:
        start_run: starts the run and returns Flower's run id.
    """
    run = RunFolder(Path(settings.run_dir))
    if not superlink.is_up(folder):
        raise superlink.SuperLinkError(superlink.not_running(folder))
    for warning in warnings_of(settings):
        display().say(f"WARNING: {warning}")
    if sites:
        display().say(f"{settings.cell}: {_roster_line(sites)}")
    if run.approvals():
        run.write_approvals({})  # they are from an earlier start
    # Made before the start: all changes from now on are from this run.
    watch = RunWatch(run, settings)
    with deferred_interrupts() as interrupted:
        run_id = start_run()
    try:
        if interrupted:
            raise KeyboardInterrupt
        return follow(folder, run_id, watch, sorted(sites))
    except KeyboardInterrupt:
        _stop(folder, run_id, run)
        raise


def start(
    folder: ServerFolder, settings: Settings, sites: Mapping[str, RegisteredSite]
) -> str:
    """Write a ticket for the server app and start it; return Flower's run id.

    Args:
        sites: the sites that take part, by name. Empty on a server without node keys: its nodes
            receive the settings and are trusted.
    """
    if sites:
        config = {"ticket": write_ticket(folder, settings, sites, signing_key(folder))}
    else:
        config = {"settings": settings.to_json()}
    return _start(folder, settings, config)


def _start(folder: ServerFolder, settings: Settings, config: Mapping[str, str]) -> str:
    """Start the server app with its run config; return Flower's run id."""
    with tempfile.TemporaryDirectory(prefix="wardround-") as temporary:
        app = stage_app(Path(temporary) / "app")
        run_id = superlink.start_run(folder, app, config)
    folder.remember_run(run_id, settings.run_dir)
    display().say(
        f"{settings.cell}: run {run_id} started; run folder: {settings.run_dir}"
    )
    plan = plan_id(Path(settings.run_dir))[:12]
    if plan:
        display().say(
            f"{settings.cell}: plan {plan}; each site decides with: wardround-site plan {plan}"
        )
    return run_id


def _roster_line(sites: Mapping[str, RegisteredSite]) -> str:
    return f"roster of {len(sites)} sites: {roster_fingerprint(roster_of(sites))}"


def stage_app(target: Path) -> Path:
    """Make the folder `target` with the app that Flower bundles; return it.

    The app names the server app and holds no code: a server runs the code of its own installation.

    Raises:
        ValueError: a file is missing in this installation.
    """
    target.mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copyfile(project_file(name), target / name)
    return target


def warnings_of(settings: Settings) -> list[str]:
    """Return warnings for the coordinator: what sites can learn of each other, and what costs
    rounds."""
    strategy = settings.strategy
    warnings = []
    if settings.num_clients == 2:
        warnings.append(
            "with two sites, each can compute the other's update from the new model. Take three "
            "or more."
        )
    if strategy.on_missing == "continue" and strategy.min_sites < 2:
        warnings.append(
            "strategy.min_sites is 1: a round with one answer sends that site's tensors to all "
            "others. Set "
            "strategy.min_sites=3 or more."
        )
    if settings.train.head_init == "per_site" and settings.num_clients > 1:
        warnings.append(
            "train.head_init=per_site: averaging heads that started separately shrinks them by "
            "about the "
            "square root of their number, so learning starts slowly (docs/collapse.md). Set "
            "train.head_init=shared."
        )
    return warnings


def settings_to_submit(overrides: Sequence[str]) -> Settings:
    """Compose a deployment with absolute paths, because the server app runs in another folder.

    Raises:
        ValueError: as `compose` does, or the overrides name another engine.
    """
    engines = [text for text in overrides if text.startswith("engine=")]
    if any(text != "engine=deployment" for text in engines):
        raise ValueError(
            f"'{engines[-1]}' is for simulations; submit runs over real sites. Leave engine=... "
            f"out, or use: "
            "wardround simulate"
        )
    if not engines:
        overrides = [*overrides, "engine=deployment"]
    settings = compose(overrides).settings
    model = settings.model
    if model.source == "hub" and Path(model.name).is_dir():
        model = replace(model, name=str(Path(model.name).absolute()))
    data = replace(
        settings.data,
        path=settings.data.path and _absolute(settings.data.path),
        test_path=settings.data.test_path and _absolute(settings.data.test_path),
    )
    run_dir = _absolute(settings.run_dir)
    return replace(settings, data=data, model=_pinned(model), run_dir=run_dir)


def _pinned(model: ModelSettings) -> ModelSettings:
    """Return the model with the SHA-256 of its weights, which sites compare with their own file."""
    if model.sha256 is not None:
        return model
    try:
        # Weights in several files have no single hash.
        return replace(model, sha256=weights_digest(model))
    except ValueError:
        return model  # a missing model is reported when it is built


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def settings_to_resume(run_dir: Path, overrides: Sequence[str]) -> Settings:
    """Return the settings of a run folder, with its current path.

    Raises:
        ValueError: it holds no run, or a simulation, or overrides are given too.
    """
    if overrides:
        raise ValueError(
            f"--resume takes the settings from '{run_dir}', but '{overrides[0]}' is given too. "
            f"Leave "
            "it out. For more rounds, submit the first command again with another num_rounds."
        )
    settings = RunFolder(run_dir).settings()
    if settings is None:
        raise ValueError(
            f"'{run_dir}' holds no run (it has no settings.json). Check --resume."
        )
    if settings.engine.is_simulated:
        raise ValueError(
            f"'{run_dir}' holds a simulation. Continue it with the `wardround simulate` command "
            f"that "
            "started it."
        )
    return replace(settings, run_dir=str(run_dir.absolute()))


def choose_sites(
    folder: ServerFolder, wanted: Sequence[str], num_clients: int
) -> list[str]:
    """Return the names of the sites that take part; empty on a server without node keys.

    Raises:
        ValueError: a wanted site is not registered, or their number is not `num_clients`.
    """
    registered = folder.sites()
    for name in wanted:
        if name not in registered:
            raise ValueError(
                f"no site '{name}' is registered. Registered: {', '.join(registered) or 'none'}. "
                f"Add it "
                f"with: wardround server invite {name}"
            )
    chosen = list(dict.fromkeys(wanted)) or list(registered)
    if not chosen and folder.is_insecure:
        return []
    state = "chosen" if wanted else "registered"
    problem = (
        f"num_clients is {num_clients} but {len(chosen)} sites are {state} "
        f"({', '.join(chosen) or 'none'})"
    )
    if len(chosen) < num_clients:
        other_step = f", or set num_clients={len(chosen)}" if chosen else ""
        raise ValueError(
            f"{problem}. Add sites with: wardround server invite SITE{other_step}."
        )
    if len(chosen) > num_clients:
        raise ValueError(
            f"{problem}. Set num_clients={len(chosen)}, or name the sites that take part with "
            f"--site."
        )
    return sorted(chosen)


@contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Collect the signals that end the program, so that a started run's id is never lost."""
    collected: list[int] = []

    def collect(number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        collected.append(number)

    before = {kind: signal.signal(kind, collect) for kind in ending_signals()}
    try:
        yield collected
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _stop(folder: ServerFolder, run_id: str, run: RunFolder) -> None:
    display().say(f"stopping run {run_id} …")
    try:
        superlink.stop_run(folder, run_id)
    except RunFailed as error:
        display().say(f"the run could not be stopped: {error}")
        return
    until = time.monotonic() + _STOP_SECONDS
    while is_held(run) and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
    # Its process may have ended before it could write its status.
    if run.status()["state"] == "running" and not is_held(run):
        run.write_status(
            "stopped",
            "stopped by the coordinator; --resume continues from the last whole round",
        )
    display().say(
        "stopped. To continue from the last whole round: "
        f"wardround submit --resume {pasteable(run.path)}"
    )
