"""Values of a training run that make sense together."""

import difflib
import re
from pathlib import Path

from agl_core.config import ModelConfig, StageConfig, TrainConfig
from agl_core.config.option import NOTIFICATIONS
from agl_core.config.train import NotifyConfig
from agl_core.errors import UserError
from agl_core.validate.rules import STRIDE, check_rules

RESERVED = ("prepare", "predict", "evaluate", "report", "ensemble")  # the jobs of a run that are no stages
HIGHEST_AGL = 655.34  # metres: 65534 cm, the largest height a uint16 file can hold beside 65535 for unknown
ATTENTIVE = ("unet", "unetplusplus")  # decoders with a choice of attention


def check_train(config: TrainConfig) -> None:
    """Raise a `UserError` for the first values of the configuration that do not go together."""
    from agl_core.durable.interval import Interval
    from agl_core.training.schedule import Span

    if config.fold >= config.folds:
        raise UserError(
            f"fold is {config.fold}, but there are {config.folds} folds: "
            f"choose 0 to {config.folds - 1}, or -1 to train on everything"
        )
    for city, highest in config.max_agl.items():
        if not 0 < highest <= HIGHEST_AGL:
            raise UserError(f"max_agl.{city} is {highest:g}: must be greater than 0 and at most {HIGHEST_AGL} metres")
    if "default" not in config.max_agl:
        raise UserError("max_agl has no value for 'default' (all cities that it does not name): add max_agl.default")
    _check_model(config.model)
    if config.gradient_checkpointing and not config.encoder.startswith("tu-"):
        raise UserError(
            f"gradient_checkpointing is true, which encoder {config.encoder!r} does not have: take one of timm "
            "(tu-NAME, for instance tu-tf_efficientnetv2_l), or gradient_checkpointing=false"
        )
    Span.parse(config.checkpoint.every, "checkpoint.every")
    Interval.parse(config.checkpoint.interval, "checkpoint.interval")
    if config.checkpoint.keep_every:
        Span.parse(config.checkpoint.keep_every, "checkpoint.keep_every")
    _check_notify(config.notify)
    if not config.stages:
        raise UserError(f"recipe {config.recipe!r} has no stages: there is nothing to train")
    for number, (name, stage) in enumerate(config.stages.items()):
        key = f"stages.{name}"
        _check_name(name, config.recipe)
        check_rules(stage, f"{key}.")
        Span.parse(stage.length, f"{key}.length")
        Span.parse(stage.validate_every, f"{key}.validate_every")
        _check_stage(key, stage)
        _check_start(key, stage, dict(list(config.stages.items())[:number]))


def _check_model(model: ModelConfig) -> None:
    channels = model.decoder_channels
    if len(channels) != 5 or min(channels) < 1:
        raise UserError(f"model.decoder_channels is {channels}: give five positive numbers, coarsest first")
    if model.decoder == "fpn" and (channels[1] % 32 or channels[1] < 64):
        raise UserError(
            f"model.decoder_channels is {channels}: the decoder fpn needs a multiple of 32, at least 64, as the second"
        )
    if model.attention != "none" and model.decoder not in ATTENTIVE:
        raise UserError(
            f"model.attention is {model.attention}, which the decoder {model.decoder} does not have: give none, or "
            f"model.decoder={ATTENTIVE[0]}"
        )


def _check_notify(notify: NotifyConfig) -> None:
    for name, words in (("command", notify.command), ("events", notify.events)):
        if isinstance(words, str) or not all(isinstance(word, str) for word in words):
            raise UserError(f"notify.{name} is {words!r}: must be a list of texts, such as ['a', 'b']")
    for event in notify.events:
        if event not in NOTIFICATIONS:
            near = difflib.get_close_matches(event, NOTIFICATIONS, 1, 0.5)
            meant = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"notify.events has {event!r}, which is no event: {meant}there are {', '.join(NOTIFICATIONS)}"
            )
    if notify.command and (not notify.command[0].strip() or any("\0" in word for word in notify.command)):
        raise UserError(f"notify.command is {notify.command}: its first word must be a program, and no word has a NUL")
    if (notify.command or notify.mail) and not notify.events:
        raise UserError(
            "notify.events is empty, so that nobody would be told of anything: name some events, or leave it out"
        )
    if notify.score is not None and "score" not in notify.events:
        raise UserError(
            f"notify.score is {notify.score:g}, but notify.events has no score: add it there, or leave notify.score out"
        )
    if notify.mail and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._%+@,-]*", notify.mail):
        raise UserError(
            f"notify.mail is {notify.mail!r}: give an address such as me@example.org, or several with commas, without "
            "blanks"
        )
    if notify.mail and not set(notify.events) - {"stall", "score"}:
        raise UserError(
            f"notify.mail is given, but of notify.events ({', '.join(notify.events)}) Slurm knows nothing: add stage, "
            "give-up, end, interruption or start, or use notify.command"
        )


def _check_name(name: str, recipe: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"stage name {name!r}: use letters, digits, - and _ only")
    if name in RESERVED:
        raise UserError(
            f"stage name {name!r} in recipe {recipe!r}: {', '.join(RESERVED)} are jobs of every run, "
            "so call the stage something else"
        )


def _check_stage(key: str, stage: StageConfig) -> None:
    for group in ("view", "zoom"):
        least, most = getattr(stage.augment, f"{group}_least"), getattr(stage.augment, f"{group}_most")
        if least > most:
            raise UserError(
                f"{key}.augment.{group}_least is {least:g} but {group}_most is {most:g}: it must not be greater"
            )
    if stage.batch % stage.micro_batch:
        raise UserError(
            f"{key}.micro_batch is {stage.micro_batch} but must divide {key}.batch, which is {stage.batch}: "
            f"choose one of {', '.join(str(n) for n in range(1, stage.batch + 1) if stage.batch % n == 0)}"
        )
    if stage.micro_batch * (stage.crop // STRIDE) ** 2 < 2:
        raise UserError(
            f"{key}.crop is {stage.crop} and {key}.micro_batch {stage.micro_batch}: batch norm needs more than one "
            f"value per channel at stride {STRIDE}, so take crops of {2 * STRIDE} or two of them"
        )
    schedule, loss = stage.schedule, stage.loss
    if schedule.floor > stage.optimizer.lr:
        raise UserError(
            f"{key}.schedule.floor is {schedule.floor:g} but must not be above "
            f"{key}.optimizer.lr, which is {stage.optimizer.lr:g}"
        )
    if schedule.name == "flat-cosine" and schedule.warmup > schedule.flat:
        raise UserError(
            f"{key}.schedule.warmup is {schedule.warmup:g} but schedule.flat is {schedule.flat:g}: the warm-up is part "
            "of the flat share, so it must not be longer"
        )
    if loss.agl == loss.direction == loss.scale == loss.magnitude == 0:
        raise UserError(f"{key}.loss has weight 0 for every part: there is nothing to learn")


def _check_start(key: str, stage: StageConfig, earlier: dict[str, StageConfig]) -> None:
    handed_over = [f"{name}/{which}" for name in earlier for which in ("best", "last")]
    handed_over += [f"{name}/last-ema" for name, other in earlier.items() if other.ema]
    if stage.start not in ("encoder", *handed_over) and Path(stage.start).suffix != ".safetensors":
        raise UserError(
            f"{key}.start is {stage.start!r}: choose one of {', '.join(['encoder', *handed_over])}, "
            "or the path of a weights file (.safetensors)"
        )
    if not stage.optimizer.resume:
        return
    name, _, which = stage.start.partition("/")
    if name not in earlier or which != "last":
        raise UserError(
            f"{key}.optimizer.resume is true but {key}.start is {stage.start!r}: moments belong to the last weights "
            f"of an earlier stage, so give <earlier stage>/last, or {key}.optimizer.resume=false"
        )
