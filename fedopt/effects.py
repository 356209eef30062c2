"""Where each table of a configuration takes effect, whence it comes, and which page tells more.

`fedopt explain` puts this beside what the schema says. Keys are those of tables, and single
ones that differ from the rest of their table; the longest that fits holds. A test keeps them in
step with the schema.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effect:
    """What is said of a table or a key besides its schema.

    Args:
        where: when and where it takes effect, as a sentence without a full stop.
        page: page of the documentation with an anchor, from the repository's root.
        source: paper or equation; "" takes that of the named choice, or there is none.
    """

    where: str
    page: str
    source: str = ""


EFFECTS: dict[str, Effect] = {
    "seed": Effect(
        "everywhere: data split, partition, first weights, cohorts, batches, noise, devices",
        "docs/reproducibility.md",
    ),
    "rounds": Effect("on the server: how often it sends, waits and averages", "docs/concepts.md"),
    "clients_per_round": Effect(
        "on the server, at the start of every round", "docs/systems.md#selection"
    ),
    "dtype": Effect(
        "on the server and the clients: parameters, inputs and all arithmetic on them",
        "docs/reproducibility.md",
    ),
    "data": Effect(
        "before the first round, when data are loaded", "docs/extending.md#your-own-data"
    ),
    "partition": Effect(
        "before the first round, when data are dealt to clients", "docs/concepts.md"
    ),
    "model": Effect(
        "before the first round: the parameters that are sent and trained",
        "docs/extending.md#your-own-model-and-loss",
    ),
    "strategy": Effect(
        "in every round: what is sent, what clients add to their gradient, how the server averages",
        "docs/strategies.md",
    ),
    "local": Effect("on the clients, in every round", "docs/techniques.md"),
    "local.optimizer": Effect("on the clients, in every local step", "docs/optim.md"),
    "local.schedule": Effect(
        "on the clients: the learning rate of each local step", "docs/schedules.md"
    ),
    "local.sam": Effect(
        "on the clients: the gradient of a step is taken at w + e, at the cost of a second pass",
        "docs/techniques.md#techniques",
        "Foret et al. 2021 (SAM)",
    ),
    "local.sam.adaptive": Effect(
        "on the clients: in the length of e", "docs/techniques.md#techniques", "Kwon et al. 2021"
    ),
    "local.sam.eta": Effect(
        "on the clients: in the length of e, where local.sam.adaptive is true",
        "docs/techniques.md#techniques",
        "Kwon et al. 2021",
    ),
    "local.sam.corrected": Effect(
        "on the clients: in the direction of e, under strategies that correct gradients",
        "docs/techniques.md#how-they-combine",
        "Dai et al. 2023 (FedGAMMA); Qu et al. 2022 (MoFedSAM)",
    ),
    "local.gradient": Effect(
        "on the clients, between a gradient and the optimizer, in every local step",
        "docs/techniques.md#the-order-of-a-step",
    ),
    "local.gradient.penalty": Effect(
        "on the clients: a term of the objective, at the cost of a second pass",
        "docs/techniques.md#techniques",
        "Barrett & Dherin 2021",
    ),
    "local.gradient.clip_norm": Effect(
        "on the clients, after the strategy's correction and the skip test",
        "docs/techniques.md#the-order-of-a-step",
        "Pascanu et al. 2013",
    ),
    "local.gradient.noise_eta": Effect(
        "on the clients, after clipping",
        "docs/techniques.md#the-order-of-a-step",
        "Neelakantan et al. 2015",
    ),
    "local.gradient.noise_gamma": Effect(
        "on the clients, after clipping, where local.gradient.noise_eta is set",
        "docs/techniques.md#the-order-of-a-step",
        "Neelakantan et al. 2015",
    ),
    "local.swa": Effect(
        "on the clients, at the end of a round: what they send",
        "docs/techniques.md#techniques",
        "Izmailov et al. 2018 (SWA)",
    ),
    "local.curriculum": Effect(
        "on the clients: which of their examples the batches of a round are made of",
        "docs/curriculum.md#curriculum",
        "Bengio et al. 2009; Wu et al. 2021",
    ),
    "local.self_paced": Effect(
        "on the clients: the weight of each example's loss in every local step",
        "docs/curriculum.md#self-paced-learning",
        "Kumar et al. 2010; Jiang et al. 2014",
    ),
    "server.optimizer": Effect(
        "on the server, once a round, in place of its plain step",
        "docs/strategies.md#server-optimizers-fedavgm-fedadagrad-fedadam-fedyogi",
        "Reddi et al. 2021",
    ),
    "server.swa": Effect(
        "on the server, after its step; the mean is evaluated and saved, not sent",
        "docs/techniques.md#techniques",
        "Izmailov et al. 2018 (SWA); Caldarola et al. 2022",
    ),
    "server.curriculum": Effect(
        "on the server: which clients may be sampled",
        "docs/curriculum.md#curriculum",
        "Vahidian et al. 2023",
    ),
    "uplink.clip": Effect(
        "on the clients, before compression and before updates are summed",
        "docs/channel.md#clipping",
        "Andrew et al. 2021",
    ),
    "uplink.privacy": Effect(
        "noise in the sum of a round's clipped updates; epsilon is in rounds.csv",
        "docs/channel.md#differential-privacy",
        "McMahan et al. 2018 (DP-FedAvg); Andrew et al. 2021",
    ),
    "uplink.compression": Effect(
        "on the clients, in what they send; bytes_up counts the encoded bytes",
        "docs/channel.md#compression",
    ),
    "downlink.compression": Effect(
        "on the server, in the model that it sends; bytes_down counts the encoded bytes",
        "docs/channel.md#compression",
    ),
    "attack": Effect(
        "on a fixed share of the clients, in every round", "docs/channel.md#hostile-clients"
    ),
    "drift": Effect(
        "on the clients' data, from a round on, and on a copy of the test set",
        "docs/drift.md#concept-drift",
    ),
    "arrival": Effect(
        "on the server: which clients may be sampled by when", "docs/drift.md#clients-that-join"
    ),
    "search": Effect(
        "on the clients: steps of the architecture between those of weights, where the model is "
        "a supernet",
        "docs/search.md#the-search",
        "Liu et al. 2019 (DARTS); He et al. 2020 (FedNAS)",
    ),
    "system": Effect("on the clients, in every round", "docs/systems.md"),
    "system.stragglers": Effect(
        "on the clients: how many of the planned local steps are done",
        "docs/systems.md#availability-and-failures",
        "Li et al. 2020 (FedProx), section 5.2",
    ),
    "system.devices": Effect(
        "on the virtual clock: sim_seconds and joules, and who is late",
        "docs/systems.md#devices",
    ),
    "system.availability": Effect(
        "on the virtual clock: who can be sampled, and who leaves too early",
        "docs/systems.md#availability-and-failures",
    ),
    "system.failures": Effect(
        "on the clients: whose update does not arrive", "docs/systems.md#availability-and-failures"
    ),
    "policy": Effect(
        "on the server: when a round ends, and whose updates count", "docs/systems.md#policies"
    ),
    "selection": Effect(
        "on the server, at the start of every round: who is sampled", "docs/systems.md#selection"
    ),
    "engine": Effect(
        "in the simulation: where clients run; only block_size and precision change results",
        "docs/performance.md",
    ),
    "evaluation": Effect("on the server, after rounds that are measured", "docs/evaluation.md"),
    "evaluation.unseen_clients": Effect(
        "before the first round, and in measured rounds", "docs/drift.md#clients-never-trained-on"
    ),
    "evaluation.validation_clients": Effect(
        "on the clients, after rounds that are measured", "docs/evaluation.md#clients"
    ),
    "evaluation.training_clients": Effect(
        "on the clients, after rounds that are measured",
        "docs/evaluation.md#the-global-objective",
        "Li et al. 2020 (FedProx), equation 1",
    ),
    "evaluation.gradients": Effect(
        "on the clients, after rounds that are measured",
        "docs/evaluation.md#the-global-objective",
        "Li et al. 2020 (FedProx), definition 3 and section 5.3.3",
    ),
    **{
        f"evaluation.sharpness_{name}": Effect(
            "on the server, after rounds in which sharpness is measured",
            "docs/evaluation.md#sharpness",
            "Foret et al. 2021; Pearlmutter 1994",
        )
        for name in ("every", "examples", "rho")
    },
    "deployment": Effect(
        "in a deployment, on the server: whom it waits for, and how long",
        "docs/deployment.md#losses",
    ),
    "deployment.probe": Effect(
        "in a deployment, before the first round: transfers.csv",
        "docs/deployment.md#equal-to-the-simulation",
    ),
    **{
        f"deployment.{name}": Effect(
            "in a deployment, in every round: what the clients send, and what the server learns",
            "docs/deployment.md#secure-aggregation",
            "Bonawitz et al. 2017",
        )
        for name in ("secure", "secure_threshold", "secure_range")
    },
    "checkpoint": Effect(
        "in the run's folder; never part of the result's bits", "docs/reliability.md#checkpoints"
    ),
}


def effect_of(key: str) -> Effect:
    """Return what holds for a key or table: its own entry, or that of the table around it."""
    while key and key not in EFFECTS:
        key = key.rpartition(".")[0]
    return EFFECTS[key]
