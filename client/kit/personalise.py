"""`wardround-site personalise`: makes this site's own model from a released one, here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wardround.client.kit.verify import require_verified
from wardround.client.personaliser import Personaliser, texts_of
from wardround.client.site import RealSite
from wardround.client.site_file import SiteFile
from wardround.common.model_files import check_folder
from wardround.common.personal_record import HEADER, PersonalRecord
from wardround.common.pretrained import RUN_SETTINGS, settings_of_model
from wardround.common.settings.tree import Settings
from wardround.common.tasks.task import Task


def personalise(
    site: SiteFile,
    model: Path,
    out: Path,
    asked: Mapping[str, object],
    *,
    unverified: bool = False,
) -> PersonalRecord:
    """Make this site's personal models; write the best one and all results to `out`.

    Nothing is sent. It reads the site's texts, its pre-trained model, and `model`; to
    verify that one, the site's plans and ledger.

    Args:
        asked: keys of `personalisation`, and `validation_fraction`. None stands for the
            value of the run's settings.
        unverified: use `model` although no approved plan of this site is proved to have
            made it.

    Raises:
        ValueError: bad input; `out` exists; `model` is not verified.
    """
    if out.exists():
        raise ValueError(
            f"--out is '{out}', which exists already. Choose another name."
        )
    check_folder(model)
    if not unverified:
        require_verified(site, model)
    real = RealSite(site)
    settings = real.localise(_settings(model, asked))
    examples = real.examples(settings)
    own = texts_of(examples, site.name)
    assert own.can_be_judged, "split_held_out leaves a text in each part"
    personaliser = Personaliser(settings, examples.corpus.label_names, model)
    personal = personaliser.personalise(own)
    personaliser.save(out, personal)
    record = personaliser.record
    record.sites.append(personal.record)
    record.write(out)
    return record


def _settings(model: Path, asked: Mapping[str, object]) -> Settings:
    """Return the run's settings, changed as asked."""
    run = settings_of_model(model)
    if run is None:
        raise ValueError(
            f"--model is '{model}', which lacks {RUN_SETTINGS}. Give the whole folder "
            "`model` of a finished run, as the coordinator sent it."
        )
    given = {key: value for key, value in asked.items() if value is not None}
    fraction = given.pop("validation_fraction", run.evaluation.validation_fraction)
    if not fraction:
        raise ValueError(
            "the run had no validation part (evaluation.validation_fraction), so there "
            "are no texts to choose a model by. Give their share of the held-out texts, "
            "for example: --validation-fraction 0.5"
        )
    values = run.to_dict()
    values["engine"]["name"] = "deployment"
    values["evaluation"]["validation_fraction"] = fraction
    values["personalisation"] |= {"opt_out_clients": (), **given}
    return Settings.from_dict(values)


def in_words(record: PersonalRecord, task: Task) -> str:
    """Describe the results of each model on the site's own test texts."""
    (site,) = record.sites
    num_test = site.candidates["global"].test.num_examples
    lines = [
        f"{site.name}: {site.num_examples} texts to learn from "
        f"({site.num_opted_out} of them opted out), "
        f"{site.num_validation} to choose by, {num_test} to test with"
    ]
    for measure, name in task.metric_words.items():
        (row,) = record.rows(measure)
        for heading, cell in zip(HEADER[2:], row[2:], strict=True):
            lines.append(f"  {name:<9} {heading.lower():<11} {cell}")
    return "\n".join(lines)
