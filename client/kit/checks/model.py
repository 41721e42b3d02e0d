"""Checks of the pre-trained model and its tokenizer. Nothing is fetched."""

from __future__ import annotations

from pathlib import Path

from wardround.client.kit.checks.findings import (
    Finding,
    ok,
    problem,
    split_step,
    warning,
)
from wardround.client.kit.checks.subject import Options, Subject
from wardround.common.checkpoint_labels import check_names, names_in_config
from wardround.common.model_files import (
    ADAPTER,
    CONFIG,
    FILES_PREFIX,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    WEIGHTS,
    WEIGHTS_PREFIX,
    ModelFiles,
    read_json,
    read_model_files,
)
from wardround.common.places import from_home
from wardround.common.pretrained import in_cache, read_tokenizer

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_VOCABULARIES = TOKENIZER_FILES - {
    *(TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "merges.txt")
}
_WITHOUT_VOCABULARY = ("CanineTokenizer", "ByT5Tokenizer", "PerceiverTokenizer")
"""Tokenizers of signs and bytes."""
_COPY_WHOLE = "Copy the whole folder of the pre-trained model there"


def model(on: Subject) -> Finding:
    """Check that the model is on this machine, or say how much will be fetched."""
    named = on.options.model
    if on.site.model is not None:
        return _local_model(on.site.model, "model:", on.options)
    if named is None:
        return warning(
            "not checked: the run names the model",
            "Ask the coordinator for its name and check again with --model NAME.",
        )
    folder = Path(from_home(named))
    if folder.exists() or named.startswith(("/", ".", "~")) or named.count("/") > 1:
        found = _local_model(folder.absolute(), "--model", on.options)
        if found.state != "ok":
            return found
        return warning(
            f"{found.message}, but site.yaml does not name it",
            f"Set model: {folder.absolute()} in site.yaml. Otherwise the site loads the "
            "model that the run names.",
        )
    return _hub_model(named, on.options)


def find_weights(folder: Path) -> list[Path]:
    """Return the files of weights that would be loaded: the first kind that is there."""
    try:
        kinds = [[*folder.glob(pattern)] for pattern in _WEIGHTS]
    except PermissionError:  # `model` reports it
        return []
    return next(filter(None, kinds), [])


def _hub_model(name: str, options: Options) -> Finding:
    from huggingface_hub import HfApi  # `join` checks no model of the hub

    cached = in_cache(name)
    if cached is not None and (cached / CONFIG).is_file() and find_weights(cached):
        try:
            files = read_model_files(cached)
            _fit(cached, options)
        except ValueError as error:
            return _refused(f"--model: {name}", error)
        return ok(f"{name} is in this machine's cache{_hashes(files)}")
    try:
        facts = HfApi().model_info(
            name, files_metadata=True, timeout=options.timeout_seconds
        )
    except Exception as error:  # the hub's client raises kinds of four libraries
        return problem(
            f"--model: {name} is not a folder here, not in the cache, and cannot be "
            f"found on the hub ({type(error).__name__})",
            "Copy the model's folder to this machine and set model: FOLDER, or let this "
            "machine connect to the hub.",
        )
    sizes = {file.rfilename: file.size or 0 for file in facts.siblings or ()}
    if ADAPTER in sizes:
        return problem(
            f"--model: {name} holds {ADAPTER}, and adapters are not read here",
            "Ask the coordinator for a model in which the adapter is merged.",
        )
    return _hub_weights(name, sizes)


def _hub_weights(name: str, sizes: dict[str, int]) -> Finding:
    """Args: sizes: bytes of each file on the hub."""
    for suffix in (".safetensors", ".bin"):
        weights = [size for file, size in sizes.items() if file.endswith(suffix)]
        message = (
            f"{name} will be fetched from the hub in the first round: "
            f"{sum(weights) / 1e6:.0f} MB"
        )
        if weights and suffix == ".safetensors":
            return ok(message)
        if weights:
            return problem(
                f"{message}; its weights are pickled, which is not read here",
                "Ask for the model with model.safetensors, a file that can run no code.",
            )
    return problem(
        f"--model: {name} is on the hub, but holds no weights for PyTorch",
        "Ask the coordinator for the name of the model.",
    )


def _fit(folder: Path, options: Options) -> None:
    """Compare the model with its tokenizer, and with the run as far as the site knows it.

    Raises:
        ValueError: the tokenizer belongs to another model, the texts would be longer than the
            model takes, or its classifier is for other labels.
    """
    most = read_tokenizer(folder).model_max_length
    if options.max_length is not None and options.max_length > most:
        raise ValueError(
            f"it takes at most {most} tokens, and texts are cut to {options.max_length}. Tell the "
            f"coordinator: train.max_length must be {most} or less."
        )
    if options.labels:
        own = names_in_config(read_json(folder / CONFIG))
        check_names(own, options.labels)


def _local_model(folder: Path, setting: str, options: Options) -> Finding:
    """Args: setting: `model:` or `--model`, which names the folder."""
    named = f"{setting} {folder}"
    if not folder.is_dir():
        reason = "does not exist"
        if folder.exists():
            reason = "is a file; a folder is needed"
        source = "--model" if setting == "--model" else "model: in site.yaml"
        return problem(f"{named} {reason}", f"{_COPY_WHOLE}, or correct {source}.")
    missing = _missing_files(folder)
    if missing:
        return problem(f"{named} lacks {', '.join(missing)}", f"{_COPY_WHOLE}.")
    try:
        files = read_model_files(folder)
        if "model_type" not in read_json(folder / CONFIG):
            return problem(
                f"{named} has a {CONFIG} without model_type",
                "Copy the folder of a pre-trained text model there, as save_pretrained "
                "writes it.",
            )
        _fit(folder, options)
    except ValueError as error:
        return _refused(named, error)
    size = sum((folder / name).stat().st_size for name in files.weights()) / 1e6
    return ok(
        f"{folder} holds a model of {size:.0f} MB and its tokenizer{_hashes(files)}"
    )


def _missing_files(folder: Path) -> list[str]:
    missing = []
    if not (folder / CONFIG).is_file():
        missing.append(CONFIG)
    if not find_weights(folder):
        missing.append(WEIGHTS)
    if not _has_tokenizer(folder):
        missing.append("tokenizer.json")
    return missing


def _has_tokenizer(folder: Path) -> bool:
    if any((folder / name).is_file() for name in _VOCABULARIES):
        return True
    try:
        kind = read_json(folder / TOKENIZER_CONFIG).get("tokenizer_class")
    except ValueError:  # the check of the whole folder reports it
        return False
    return kind in _WITHOUT_VOCABULARY


def _refused(named: str, error: ValueError) -> Finding:
    message, step = split_step(error)
    return problem(f"{named} is refused: {message}", step)


def _hashes(files: ModelFiles) -> str:
    """Return the two hashes of a model in the form of `policy.models`."""
    weights = files.weights_digest()
    alone = "they lie in several files"
    if weights is not None:
        alone = f"{WEIGHTS_PREFIX}{weights}"
    return (
        f";\nweights alone: {alone};"
        f"\nall files:     {FILES_PREFIX}{files.digest()} ({', '.join(files.names)})"
    )
