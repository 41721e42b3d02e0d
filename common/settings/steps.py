"""The next step after a refused value, by the dotted key or the type of the error."""

from __future__ import annotations

STEPS = {
    "missing": "Settings that another version wrote cannot be read.",
    "seed": "Give a whole number from 0 to 2**63 - 1.",
    "arm": "A folder is named after it: use letters, digits, '.' and '_'.",
    "threads": "Give a positive number, or auto.",
    "model.sha256": "Give 64 hexadecimal digits, or null.",
    "data.text_columns": "Name at least one column: [text].",
    "data.test_fraction": "Give a share between 0 and 1.",
    "data.token_cache": "Give auto, null, or a folder with a / in it (./tokens).",
    "partition.alpha": (
        "A dirichlet partition needs a positive number; for any other set it to null."
    ),
    "train.local_epochs": (
        "A client must train at least one epoch. To evaluate only, set num_rounds=0."
    ),
    "train.max_length": "A text has 3 tokens at least, with its markers.",
    "train.warmup_fraction": "Give a number in [0, 1).",
    "train.max_grad_norm": "Set it to null for no clipping.",
    "train.head_learning_rate": "Set it to null for that of the whole model.",
    "engine.workers": "Give a positive number, or auto.",
    **dict.fromkeys(
        ("strategy.server_momentum", "strategy.beta_1", "strategy.beta_2"),
        "Give a number in [0, 1).",
    ),
    **dict.fromkeys(
        ("data.train_examples", "data.test_examples", "data.max_words"),
        "Set it to null for all.",
    ),
    **dict.fromkeys(
        (
            "strategy.wait_seconds",
            "strategy.round_timeout_seconds",
            "strategy.ask_again_seconds",
        ),
        "A wait needs a positive bound in seconds.",
    ),
    **dict.fromkeys(
        (
            "strategy.max_share",
            "strategy.max_update_norm",
            "strategy.max_norm_ratio",
        ),
        "Set it to null for no bound.",
    ),
}
