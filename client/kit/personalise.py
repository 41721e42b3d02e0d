"""`wardround-site personalise`: a released model, this site's own texts, and what comes of them, here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wardround.client.kit.verify import require_verified
from wardround.client.personal import Personaliser, texts_of
from wardround.client.site import RealSite
from wardround.client.site_file import SiteFile
from wardround.common.model_files import check_folder
from wardround.common.personal import HEADER, PersonalRecord
from wardround.common.pretrained import RUN_SETTINGS, settings_of_model
from wardround.common.settings import Settings


def personalise(
    site: SiteFile,
    model: Path,
    out: Path,
    asked: Mapping[str, object],
    *,
    unverified: bool = False,
) -> PersonalRecord:
    """Make this site's personal models, and fill `out` with the chosen one and what each of them does.

    Nothing is sent. It reads the site's file of texts, its pre-trained model, `model`, and what proves
    that: the site's plans and its ledger.

    Args:
        asked: keys of `personalisation`, and `validation_fraction`; None leaves one to the run's settings.
        unverified: take `model` although nothing proves that an approved plan of this site made it.

    Raises:
        ValueError: bad input; `out` is there already; `model` is not verified.
    """
    if out.exists():
        raise ValueError(f"--out is '{out}', which is there already. Name another.")
    check_folder(model)
    if not unverified:
        require_verified(site, model)
    real = RealSite(site)
    settings = real.localise(_settings(model, asked))
    own = texts_of(real.examples(settings), site.name)
    assert own.can_be_judged, "split_held_out leaves a text in each part"
    personaliser = Personaliser(settings, settings.declared_labels(), model)
    personal = personaliser.personalise(own)
    personaliser.save(out, personal)
    record = personaliser.record
    record.sites.append(personal.record)
    record.write(out)
    return record


def _settings(model: Path, asked: Mapping[str, object]) -> Settings:
    """The run's, with what is asked for here in their place."""
    told = settings_of_model(model)
    if told is None:
        raise ValueError(
            f"--model is '{model}', which holds no {RUN_SETTINGS}. Give the folder `model` of a finished run "
            "as the coordinator sent it, whole."
        )
    given = {key: value for key, value in asked.items() if value is not None}
    fraction = given.pop("validation_fraction", told.evaluation.validation_fraction)
    if not fraction:
        raise ValueError(
            "the run had no validation part (evaluation.validation_fraction), by which a model is chosen. "
            "Say which share of the held-out texts is to be it: --validation-fraction 0.5"
        )
    values = told.to_dict()
    values["engine"]["name"] = "deployment"
    values["evaluation"]["validation_fraction"] = fraction
    values["personalisation"] |= {"opt_out_clients": (), **given}
    return Settings.from_dict(values)


def in_words(record: PersonalRecord) -> str:
    """What each model does on the site's own test part, and which is chosen, for people."""
    (site,) = record.sites
    lines = [
        f"{site.name}: {site.num_examples} texts to learn from, of which {site.num_opted_out} opted out; "
        f"{site.num_validation} to choose by, {site.candidates['global'].test.num_examples} to judge by"
    ]
    for measure, called in (("accuracy", "accuracy"), ("macro_f1", "macro F1")):
        (row,) = record.rows(measure)
        lines += [
            f"  {called:<9} {head.lower():<11} {cell}"
            for head, cell in zip(HEADER[2:], row[2:], strict=True)
        ]
    return "\n".join(lines)
