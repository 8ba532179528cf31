"""What `convert` is told: modes and their configuration, read from all the spellings there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from distillation.errors import ConfigError, unknown

MODES = ("kd_loss", "layerwise_kd", "export_student")
TABLE_OPTIONS = (
    *("precision", "channels_last", "epochs", "root", "layers", "codec"),
    *("on_mismatch", "announce", "device", "resident", "say"),
)


@dataclass(kw_only=True)
class KDLossConfig:
    """How a model is distilled; a plain dict with these keys does as well.

    Attributes:
        teacher_model: a module, or how to make one: a class or function, `(callable,)`,
            `(callable, args)` or `(callable, args, kwargs)`; also a run UUID, a `TeacherSource`,
            or a list of these (an ensemble). What is made by a named callable can be made again
            by `restore`.
        criterion: one loss between the models' outputs, or `{(student_layer, teacher_layer):
            loss}`.
        loss_balancer: turns several losses, and the student's own, into one.
        expose_minimal_state_dict: False shows the teacher in `state_dict()`, under
            `_teacher_model.`; it is never in `parameters()`.
        teacher_mode: "eval"; "follow": frozen, but its dropout and batch norm follow `train()`;
            "train": not frozen, autograd sees it.
        teacher_table: answer for the teacher from a table of its outputs: "auto", a folder, or a
            `TeacherTable` (then `teacher_model` may be left out); None or "off" runs the teacher.
            A batch says which entries it needs: `compute_kd_loss(…, sample=…, view=…)`.
        table_data: what "auto" or a folder is a table of: the loader that the student trains on,
            or `distillation.table.Inputs` made by hand.
        table_options: of that table, as `distillation.table_option.table_source` takes them:
            `precision` and `channels_last` of the script's forward passes, `root` of the run
            store, `epochs`, `layers`, ….
    """

    teacher_model: Any = None
    criterion: nn.Module | Mapping[tuple[str, str], nn.Module] | None = None
    loss_balancer: nn.Module | None = None
    expose_minimal_state_dict: bool = True
    teacher_mode: str = "eval"
    teacher_table: Any = None
    table_data: Any = None
    table_options: Mapping[str, Any] | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> KDLossConfig:
        names = [field.name for field in fields(cls)]
        for key in kwargs if cls.__init__ is KDLossConfig.__init__ else ():
            if key not in names:
                raise ConfigError(unknown("attribute of KDLossConfig:", key, names))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        from distillation.table import TeacherTable

        given = isinstance(self.teacher_table, TeacherTable)
        for name in ("criterion",) if given else ("teacher_model", "criterion"):
            if getattr(self, name) is None:
                raise ConfigError(
                    f"{name} is missing; give convert(…, {name}=…), or {name!r} in the mode's "
                    "configuration"
                )
        check_table_config(self.teacher_table, self.table_data, self.table_options)

    @classmethod
    def of(cls, given: KDLossConfig | Mapping[str, Any] | None, mode: str) -> KDLossConfig:
        """`given` as a `KDLossConfig`.

        Raises:
            ConfigError: a key that is not one of the attributes, or a missing one.
        """
        if isinstance(given, cls):
            return given
        names = [field.name for field in fields(cls)]
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(
                f"the configuration of mode {mode!r} is a {type(given).__name__}; give a dict or a "
                "KDLossConfig"
            )
        given = dict(given or {})
        for key in given:
            if key not in names:
                raise ConfigError(unknown(f"key in the configuration of {mode!r}:", key, names))
        return cls(**given)


def check_table_config(table: Any, data: Any, options: Any) -> None:
    """Raise `ConfigError` for parts of the table's configuration that are missing or unused."""
    from distillation.table import TeacherTable
    from distillation.table_option import is_online

    made = isinstance(table, TeacherTable)
    if made or is_online(table):
        why = "a TeacherTable has its own" if made else "there is no teacher_table"
        for name, value in (("table_data", data), ("table_options", options)):
            if value is not None:
                raise ConfigError(f"{name} has no use: {why}")
    elif data is None:
        raise ConfigError(
            f"teacher_table={table!r} needs table_data: the loader that the student trains on (a "
            "TensorLoader or a ReplayableLoader), or Inputs of distillation.table for data of your "
            "own"
        )
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"table_options must be a dict, not {type(options).__name__}")
    for name in options or ():
        if name not in TABLE_OPTIONS:
            raise ConfigError(unknown("key in table_options:", name, TABLE_OPTIONS))


def parse_modes(mode: object) -> list[tuple[str, KDLossConfig | None]]:
    """`[(name, config)]` from a name, a list of names or of pairs, or a dict.

    Raises:
        ConfigError: an unknown mode, or a configuration that does not belong to its mode.
    """
    if isinstance(mode, str):
        pairs: list[tuple[object, object]] = [(mode, None)]
    elif isinstance(mode, Mapping):
        pairs = list(mode.items())
    elif _is_pair(mode):
        pairs = [mode]  # one (name, config), not in a list
    elif isinstance(mode, Sequence):
        pairs = [(m, None) if isinstance(m, str) else _pair(m) for m in mode]
    else:
        raise ConfigError(
            f"mode is a {type(mode).__name__}; give a name, a list of names or of (name, config), "
            "or a dict {name: config}"
        )
    return [(str(name), _config(name, config)) for name, config in pairs]


def _is_pair(mode: object) -> bool:
    return (
        isinstance(mode, tuple)
        and len(mode) == 2
        and isinstance(mode[0], str)
        and (mode[1] is None or isinstance(mode[1], Mapping | KDLossConfig))
    )


def _pair(item: object) -> tuple[object, object]:
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str):
        return item[0], item[1]
    raise ConfigError(f"mode holds {item!r}; give names, or pairs (name, config)")


def _config(name: object, config: object) -> KDLossConfig | None:
    if name not in MODES:
        raise ConfigError(unknown("mode", name, MODES))
    if name == "export_student":
        if config:
            raise ConfigError(f"mode 'export_student' takes no configuration, got {config!r}")
        return None
    return KDLossConfig.of(config, str(name))


def _kinds(model: object) -> str:
    """What was given, in few words: the repr of a model is a page."""
    if isinstance(model, tuple):
        return f"a tuple of ({', '.join(type(part).__name__ for part in model)})"
    return repr(model)


def build_model(model: object) -> nn.Module:
    """A module from an instance, a class, or `(class or function, args, kwargs)`.

    Raises:
        ConfigError: it is none of these, or what was made is no module.
    """
    if isinstance(model, nn.Module):
        return model
    spec = model if isinstance(model, tuple) else (model,)
    function, args, kwargs = (*spec, *((), {})[len(spec) - 1 :]) if 0 < len(spec) < 4 else (0, 0, 0)
    if not (callable(function) and isinstance(args, tuple | list) and isinstance(kwargs, Mapping)):
        raise ConfigError(
            "model must be an nn.Module, a class or function that makes one, or (class, args, "
            f"kwargs), not {_kinds(model)}"
        )
    made = function(*args, **kwargs)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"model: {function!r} made a {type(made).__name__}, not an nn.Module")
    return made
