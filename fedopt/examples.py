"""For every key of a configuration, words of a command that use it and are accepted.

Most come from the schema: the entry that has the option, and a value that is not the default. What
needs more (a file, another key, a value that makes sense) stands here; a test loads them all.
"""

from __future__ import annotations

from fedopt.config import DEFAULT_NAMES
from fedopt.keys import Key
from fedopt.schema_text import bounds, default_value, literals, toml_text

_MEASURED = ("data.validation_fraction=0.2", "evaluation.validation_clients=50")
_PRIVATE = ("strategy.weighting=uniform", "uplink.clip.norm=1", "uplink.privacy.noise_multiplier=1")
_NAMED = (
    "data=sites",
    "data.path=hospitals",
    "partition=natural",
    "clients_per_round=all",
    "data.target=diagnosis",
    'data.labels=["benign","malignant"]',
)

SPECIAL: dict[str, tuple[str, ...]] = {
    "seed": ("seed=1",),
    "clients_per_round": ("clients_per_round=0.1",),
    "local.epochs": ("local.epochs=2",),
    "local.steps": ("local.steps=20",),
    "local.batch_size": ("local.batch_size=full",),
    "local.loss": ("local.loss=my_model:smoothed",),
    "local.optimizer_state": ("local.optimizer_state=keep", "local.optimizer=adam"),
    "local.nominal_steps": ("local.nominal_steps=50", "local.schedule=cosine"),
    "local.sam.rho": ("local.sam.rho=0.05",),
    "local.sam.adaptive": ("local.sam.rho=0.5", "local.sam.adaptive=true"),
    "local.sam.eta": ("local.sam.rho=0.5", "local.sam.adaptive=true", "local.sam.eta=0.005"),
    "local.sam.corrected": ("strategy=scaffold", "local.sam.rho=0.05", "local.sam.corrected=true"),
    "local.gradient.penalty": ("local.gradient.penalty=0.01",),
    "local.gradient.skip_norm": ("local.gradient.skip_norm=10",),
    "local.gradient.clip_norm": ("local.gradient.clip_norm=5",),
    "local.gradient.clip_value": ("local.gradient.clip_value=0.1",),
    "local.gradient.noise_eta": ("local.gradient.noise_eta=0.01",),
    "local.gradient.noise_gamma": ("local.gradient.noise_eta=0.01", "local.gradient.noise_gamma=1"),
    "local.swa.last_steps": ("local.swa.last_steps=10",),
    "local.swa.last_epochs": ("local.swa.last_epochs=1",),
    "local.swa.decay": ("local.swa.decay=0.9",),
    "local.curriculum.name": ("local.curriculum=curriculum",),
    "local.curriculum.score": ("local.curriculum=curriculum", "local.curriculum.score=margin"),
    "local.curriculum.reference": (
        "local.curriculum=curriculum",
        "local.curriculum.reference=local",
    ),
    "local.curriculum.teacher": (
        "local.curriculum=curriculum",
        "local.curriculum.reference=teacher",
        "local.curriculum.teacher=runs/teacher/model.safetensors",
    ),
    "local.self_paced.name": ("local.self_paced.name=hard", "local.self_paced.quantile=0.5"),
    "local.self_paced.threshold": ("local.self_paced.name=hard", "local.self_paced.threshold=1.5"),
    "local.self_paced.quantile": ("local.self_paced.name=hard", "local.self_paced.quantile=0.5"),
    "local.self_paced.ratio": (
        "local.self_paced.name=mixture",
        "local.self_paced.quantile=0.5",
        "local.self_paced.ratio=0.25",
    ),
    "server.swa.start": ("server.swa.start=0.75",),
    "server.swa.every": ("server.swa.start=0.75", "server.swa.every=5"),
    "server.swa.decay": ("server.swa.decay=0.95",),
    "server.swa.batch_norm_clients": ("server.swa.start=0.75", "server.swa.batch_norm_clients=50"),
    "server.curriculum.name": ("server.curriculum=curriculum",),
    "server.curriculum.measure_every": (
        "server.curriculum=curriculum",
        "server.curriculum.measure_every=10",
    ),
    "uplink.clip.norm": ("uplink.clip.norm=1",),
    "uplink.clip.quantile": ("uplink.clip.norm=1", "uplink.clip.quantile=0.5"),
    "uplink.clip.lr": ("uplink.clip.norm=1", "uplink.clip.quantile=0.5", "uplink.clip.lr=0.1"),
    "uplink.privacy.noise_multiplier": _PRIVATE,
    "uplink.privacy.count_noise": (
        *_PRIVATE,
        "uplink.clip.quantile=0.5",
        "uplink.privacy.count_noise=2",
    ),
    "arrival.share": ("arrival.share=0.5",),
    "arrival.last": ("arrival.share=0.5", "arrival.last=50"),
    "arrival.waves": ("arrival.share=0.5", "arrival.pattern=step", "arrival.waves=3"),
    "search.xi": ("model=dense_supernet", "partition=iid", "search.xi=0.1"),
    "search.skip_limit": ("model=cell_supernet", "partition=iid", "search.skip_limit=2"),
    "search.retrain_rounds": ("model=dense_supernet", "partition=iid", "search.retrain_rounds=50"),
    "search.retrain_lr": ("model=dense_supernet", "partition=iid", "search.retrain_lr=0.05"),
    "deployment.secure_threshold": ("deployment.secure=true", "deployment.secure_threshold=0.75"),
    "deployment.secure_range": ("deployment.secure=true", "deployment.secure_range=8"),
    "system.stragglers": ("system.stragglers=0.5",),
    "system.speed_counts": ("system.devices=log_normal", "system.speed_counts=operations"),
    "engine.workers": ("engine.workers=2",),
    "engine.training": ("engine.training=loop",),
    "engine.device": ("engine.device=cuda",),
    "engine.address": ("engine.address=auto",),
    "engine.block_size": ("engine.block_size=4",),
    "engine.max_client_failures": ("engine.on_client_error=skip", "engine.max_client_failures=3"),
    "evaluation.every": ("evaluation.every=5",),
    "evaluation.validation_clients": _MEASURED,
    "evaluation.unseen_clients": ("evaluation.unseen_clients=0.1",),
    "evaluation.training_clients": ("evaluation.training_clients=1.0",),
    "evaluation.gradients": ("evaluation.training_clients=1.0", "evaluation.gradients=true"),
    "evaluation.sharpness_every": ("evaluation.sharpness_every=50",),
    "checkpoint.minutes": ("checkpoint.minutes=10",),
    "data.label_noise": ("data.label_noise=0.2",),
    "data.validation_fraction": _MEASURED,
    "data.path": ("data=files", "data.path=my_data.npz"),
    "data.target": _NAMED,
    "data.labels": _NAMED,
    "data.scale": ("data=files", "data.path=my_data.npz", "data.scale=0.00392157"),
    "data.shift": ("data=files", "data.path=my_data.npz", "data.shift=-0.5"),
    "partition.similarity": ("partition=similarity", "partition.similarity=0.1"),
    "model.hidden": ("model.hidden=[200,200]",),
    "model.dropout": ("model.dropout=0.2",),
    "model.path": ("model=genotype", "model.path=runs/search/genotype.json"),
    "strategy.mu": ("strategy=fedprox", "strategy.mu=0.01"),
    "strategy.mu_step": ("strategy=fedprox", "strategy.adaptive=true", "strategy.mu_step=0.05"),
    "strategy.patience": ("strategy=fedprox", "strategy.adaptive=true", "strategy.patience=3"),
    "strategy.weighting": ("strategy.weighting=uniform",),
    "strategy.force": ("strategy=scaffold", "strategy.weighting=examples", "strategy.force=true"),
    "strategy.lipschitz": ("strategy=qfedavg", "strategy.lipschitz=10"),
    "strategy.personal": ("strategy=fedper", *_MEASURED, 'strategy.personal=["3"]'),
    "strategy.steps": ("strategy=centralised", "strategy.steps=100"),
    "local.optimizer.momentum": ("local.optimizer.momentum=0.9",),
    "local.optimizer.dampening": ("local.optimizer.momentum=0.9", "local.optimizer.dampening=0.1"),
    "local.optimizer.weight_decay": ("local.optimizer.weight_decay=0.0001",),
    "local.optimizer.nesterov": ("local.optimizer.momentum=0.9", "local.optimizer.nesterov=true"),
    "local.optimizer.kl_clip": ("local.optimizer=kfac", "local.optimizer.kl_clip=0.001"),
    "local.optimizer.fallback_lr": ("local.optimizer=kfac", "local.optimizer.fallback_lr=0.1"),
    "local.schedule.warmup": ("local.schedule=cosine", "local.schedule.warmup=5"),
    "local.schedule.warmup_start_factor": (
        "local.schedule=cosine",
        "local.schedule.warmup=5",
        "local.schedule.warmup_start_factor=0.1",
    ),
    "local.schedule.milestones": (
        "local.schedule=multi_step",
        "local.schedule.milestones=[100,150]",
    ),
    "local.schedule.total_iters": ("local.schedule=polynomial", "local.schedule.total_iters=100"),
    "local.schedule.T_max": ("local.schedule=cosine", "local.schedule.T_max=100"),
    "local.schedule.eta_min": ("local.schedule=cosine", "local.schedule.eta_min=0.001"),
    "local.schedule.base_lr": ("local.schedule=cyclical", "local.schedule.base_lr=0.01"),
    "local.schedule.max_lr": ("local.schedule=one_cycle", "local.schedule.max_lr=0.3"),
    "local.schedule.step_size_up": ("local.schedule=cyclical", "local.schedule.step_size_up=20"),
    "local.schedule.step_size_down": (
        "local.schedule=cyclical",
        "local.schedule.step_size_down=40",
    ),
    "local.schedule.cycle_momentum": (
        "local.schedule=one_cycle",
        "local.schedule.cycle_momentum=true",
        "local.optimizer.momentum=0.9",
    ),
    "local.schedule.lr1": ("local.schedule=swa_cyclic", "local.schedule.lr1=0.1"),
    "local.schedule.lr2": ("local.schedule=swa_cyclic", "local.schedule.lr2=0.01"),
    "local.schedule.cooldown": (
        "local.schedule=plateau",
        "local.schedule.metric=train_loss",
        "local.schedule.cooldown=5",
    ),
    "local.schedule.min_lr": (
        "local.schedule=plateau",
        "local.schedule.metric=train_loss",
        "local.schedule.min_lr=0.001",
    ),
    "server.optimizer.momentum": ("server.optimizer=sgd", "server.optimizer.momentum=0.9"),
    "server.optimizer.dampening": (
        "server.optimizer=sgd",
        "server.optimizer.momentum=0.9",
        "server.optimizer.dampening=0.1",
    ),
    "server.optimizer.weight_decay": (
        "server.optimizer=adamw",
        "server.optimizer.weight_decay=0.1",
    ),
    "server.optimizer.nesterov": (
        "server.optimizer=sgd",
        "server.optimizer.momentum=0.9",
        "server.optimizer.nesterov=true",
    ),
    "server.optimizer.kl_clip": ("server.optimizer=ekfac", "server.optimizer.kl_clip=0.001"),
    "server.optimizer.fallback_lr": ("server.optimizer=ekfac", "server.optimizer.fallback_lr=0.1"),
    "drift.start": ("drift=label", "drift.start=50"),
    "drift.stagger": ("drift=label", "drift.groups=2", "drift.stagger=10"),
    "drift.scale": ("drift=feature", "drift.scale=0.5"),
    "drift.length": ("drift=label", "drift.kind=gradual", "drift.length=20"),
    "drift.period": ("drift=label", "drift.kind=recurring", "drift.period=20"),
    "system.devices.names": (
        "system.devices=classes",
        'system.devices.names=["phone_slow","laptop"]',
    ),
    "system.devices.weights": (
        "system.devices=classes",
        'system.devices.names=["phone_slow","laptop"]',
        "system.devices.weights=[3,1]",
    ),
    "system.devices.path": ("system.devices=file", "system.devices.path=devices.csv"),
    "system.availability.path": ("system.availability=trace", "system.availability.path=trace.csv"),
    "system.availability.period": (
        "system.availability=trace",
        "system.availability.period=86400",
    ),
    "policy.buffer": ("policy=fedbuff", "system.devices=log_normal", "policy.buffer=10"),
}

NEEDS: dict[str, tuple[str, ...]] = {
    "local.curriculum": ("local.curriculum=curriculum",),
    "local.self_paced": ("local.self_paced.name=hard", "local.self_paced.quantile=0.5"),
    "server.curriculum": ("server.curriculum=curriculum",),
    "uplink.privacy": _PRIVATE,
    "arrival": ("arrival.share=0.5",),
    "search": ("model=dense_supernet", "partition=iid"),
}
"""What the keys of a table need in order to have an effect."""

ENTRY_NEEDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("data", "files"): ("data.path=my_data.npz",),
    ("data", "sites"): (
        "data.path=deployment/clients",
        "partition=natural",
        "clients_per_round=all",
    ),
    ("local.schedule", "multi_step"): ("local.schedule.milestones=[100,150]",),
    ("local.schedule", "plateau"): ("local.schedule.metric=train_loss",),
    ("strategy", "mofedsam"): ("local.sam.rho=0.05",),
    ("strategy", "fedpm"): ("local.optimizer=kfac",),
    ("strategy", "fedbn"): ("model=cnn", "model.norm=group", *_MEASURED),
    ("strategy", "fedper"): _MEASURED,
    ("strategy", "fedrep"): _MEASURED,
    ("strategy", "ditto"): _MEASURED,
    ("strategy", "local_only"): _MEASURED,
    ("model", "cell_supernet"): ("partition=iid",),
    ("model", "dense_supernet"): ("partition=iid",),
    ("policy", "semi_synchronous"): ("system.devices=log_normal", "strategy=fedprox"),
    ("policy", "deadline"): ("system.devices=log_normal",),
    ("policy", "over_selection"): ("system.devices=log_normal",),
    ("policy", "fedbuff"): ("system.devices=log_normal",),
    ("policy", "fedasync"): ("system.devices=log_normal",),
}
"""What an entry needs besides its name."""

VALUES: dict[tuple[str, str], str] = {
    ("data.path", "fashion_mnist"): "/data/fashion-mnist",
    ("data.path", "sites"): "deployment/clients",
    ("data.columns", "sites"): '["age","dose"]',
    ("data.classes", "sites"): "10",
    ("data.label_noise", "sites"): "0",
    ("data.scale", "sites"): "0.00392157",
    ("data.shift", "sites"): "-0.5",
    ("data.test_fraction", "files"): "0.2",
    ("model.depth", "resnet"): "14",
    ("strategy.personal", "fedrep"): '["3"]',
    ("strategy.weighting", "scaffold"): "uniform",
    ("local.schedule.cycle_momentum", "cyclical"): "false",
    ("local.schedule.max_momentum", "cyclical"): "0.85",
    ("local.schedule.max_momentum", "one_cycle"): "0.9",
    ("local.schedule.metric", "plateau"): "train_loss",
}
"""Values where the schema says too little."""


def example_of(key: Key) -> tuple[str, ...]:
    """Return the words of a command that set a key, and what it needs.

    Args:
        key: of a fixed table, or an option of an entry, which the words name.
    """
    words = SPECIAL.get(key.path)
    if words is not None and (key.entry is None or _names(words, key)):
        return words
    needs = NEEDS.get(key.table, ())
    value = None
    if key.entry is not None:
        name = key.entry.name
        if name != DEFAULT_NAMES[key.table]:
            needs = (f"{key.table}={name}", *ENTRY_NEEDS.get((key.table, name), ()))
        value = VALUES.get((key.path, name))
    own = f"{key.path}={value or _value(key)}"
    return (*(word for word in needs if not word.startswith(f"{key.path}=")), own)


def _names(words: tuple[str, ...], key: Key) -> bool:
    """Return whether words are about the entry whose option a key is."""
    assert key.entry is not None
    named = [word.partition("=")[2] for word in words if word.startswith(f"{key.table}=")]
    return (named or [DEFAULT_NAMES[key.table]])[0] == key.entry.name


def _value(key: Key) -> str:
    """Return a value that is allowed, and not the default where another is at hand."""
    field, default = key.field, default_value(key.field)
    words = literals(field.annotation)
    if words:
        return str(next((word for word in words if word not in (default, "none")), words[0]))
    if isinstance(default, bool):
        return str(not default).lower()
    if isinstance(default, int):
        return str(2 * default or 1)
    if isinstance(default, float):
        return _number(default, bounds(field))
    return toml_text(default).replace(" ", "") if default else "1"


def _number(default: float, limits: list[str]) -> str:
    """Return half of a number, or a tenth where it is 0, within limits."""
    value = default / 2 or 0.1
    for limit in limits:
        sign, _, bound = limit.partition(" ")
        if sign in (">", ">=") and value < float(bound.replace(",", "")):
            value = default
    return f"{value:g}"


def command(words: tuple[str, ...]) -> str:
    """Return a command of a shell that has the words, quoted where a shell wants it."""
    import shlex

    is_deployed = any(word.startswith("deployment.") for word in words)
    program = "fedopt deploy submit" if is_deployed else "fedopt run"

    return " ".join([program, *(shlex.quote(word) for word in words)])
