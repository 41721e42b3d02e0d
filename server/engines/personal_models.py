"""Personal models of a simulation's clients, made after the last round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wardround.client.personaliser import OwnTexts, Personaliser, texts_of_clients
from wardround.common.settings.tree import Settings
from wardround.server.app import recorded
from wardround.server.display import display
from wardround.server.run_folder import RunFolder


def texts_to_personalise(settings: Settings) -> list[OwnTexts]:
    """Return the texts of the clients that can choose a personal model and judge it.

    A skewed deal leaves other clients too few held-out texts.

    Raises:
        ValueError: no client holds out enough texts.
    """
    own_texts = texts_of_clients(settings)
    judged = [own for own in own_texts if own.can_be_judged]
    left_out = [own.owner for own in own_texts if not own.can_be_judged]
    if not judged:
        raise ValueError(
            "no client holds out a text to choose a model by and another to judge it by. "
            "Hold out more (data.test_fraction), or lower num_clients."
        )
    if left_out:
        display().say(
            f"{settings.cell}: too few held-out texts for personal models of "
            f"client {', '.join(left_out)}"
        )
    return judged


def personalise(settings: Settings, own_texts: Sequence[OwnTexts]) -> None:
    """Make the personal models, one client after the other, from the model of the run.

    Models that an earlier start has made stay.
    """
    folder = RunFolder(Path(settings.run_dir))
    reason = folder.status()["reason"]
    with folder.open(settings), recorded(folder):
        personaliser = Personaliser(
            settings, folder.label_names(), folder.path / "model"
        )
        record = personaliser.record.or_started(folder.path)
        for own in own_texts[len(record.sites) :]:
            personal = personaliser.personalise(own)
            if settings.personalisation.keep_models:
                target = folder.path / "personal" / own.owner
                personaliser.save(target, personal)
            record.sites.append(personal.record)
            record.write(folder.path)
            display().say(
                f"{settings.cell}: personal models {len(record.sites)} of "
                f"{len(own_texts)}, {own.owner} takes {personal.record.chosen}"
            )
        folder.write_status("finished", reason)
