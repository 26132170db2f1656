import pickle
import sys
from importlib import import_module
from importlib.metadata import EntryPoint

import pytest
import torch

from criteria import CRITERIA, NEEDS, CriterionError, GroupStats, Registry, registry

BUILT_IN = {
    "ablation": ["accuracy_ablation", "loss_ablation"],
    "activation": ["apoz", "chip", "entropy", "hrank", "mean_activation"],
    "batchnorm": ["bn_scale", "bn_taylor"],
    "control": ["random"],
    "geometry": ["cosine", "fermat", "fpgm", "whc"],
    "gradient": ["fisher", "obd", "taylor_fo", "taylor_l1", "taylor_l2", "taylor_output", "taylor_so"],
    "label-aware": ["discriminant"],
    "learned": ["learned_scale", "se_gate"],
    "magnitude": ["l1", "l2", "lamp"],
    "reconstruction": ["cap", "thinet"],
    "sensitivity": ["grasp", "snip", "synflow"],
}


def ones(stats):
    """All alike.

    Not shown.
    """
    return torch.ones(stats.rows)


def registered(*names, family="test", needs=(), function=ones):
    own = Registry()
    for name in names:
        own.register(name, family=family, needs=needs, reference="none")(function)
    return own


def test_the_built_in_criteria_are_sorted_by_family_then_name():
    assert list(CRITERIA.names()) == [name for family in sorted(BUILT_IN) for name in BUILT_IN[family]]
    assert {criterion.name: criterion.family for criterion in CRITERIA} == {
        name: family for family, names in BUILT_IN.items() for name in names
    }


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: criterion.name)
def test_every_built_in_criterion_is_documented(criterion):
    assert criterion.summary
    assert criterion.summary.endswith((".", "no data"))
    assert criterion.reference
    assert all(section in criterion.function.__doc__ for section in ("Args:", "Returns:"))
    assert criterion.needs <= set(NEEDS)


def test_a_decorated_function_stays_itself():
    own = Registry()
    assert own.register("ones", family="test", needs=(), reference="none")(ones) is ones
    criterion = own.get("ones")
    assert (criterion.name, criterion.family, criterion.reference) == ("ones", "test", "none")
    assert criterion.summary == "All alike."
    assert criterion.side == "producer"
    assert criterion(GroupStats("g", "conv", 3)).tolist() == [1, 1, 1]
    assert "ones" in own
    assert "twos" not in own
    assert len(own) == 1


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(CriterionError, match="registered name, got 'tailor_fo'; did you mean 'taylor_fo'"):
        CRITERIA.get("tailor_fo")
    own = registered("a")
    own.register("b", family="earlier", needs=(), reference="none")(ones)
    with pytest.raises(ValueError, match="got 'xyz'; choose from b, a"):
        own.get("xyz")


def test_a_name_is_given_once():
    own = registered("ones")
    with pytest.raises(ValueError, match=f"must be unique, got 'ones', which {__name__} registered"):
        own.register("ones", family="other", needs=(), reference="none")(ones)
    assert own.get("ones").family == "test"


def test_needs_are_known_and_of_one_side():
    with pytest.raises(ValueError, match=r"needs of 'x' must be among weight, .*, got gradients, labels"):
        registered("x", needs={"labels", "weight", "gradients"})
    with pytest.raises(ValueError, match="needs of 'x' must be of one side, got maps, weight"):
        registered("x", needs={"maps", "weight"})


@pytest.mark.parametrize(
    ("returned", "got"),
    [(torch.ones(2), r"\(2,\)"), (torch.ones(3, 1), r"\(3, 1\)"), (torch.tensor(1.0), r"\(\)"), ([1.0] * 3, "list")],
)
def test_a_wrong_result_is_refused(returned, got):
    criterion = registered("bad", function=lambda stats: returned).get("bad")
    with pytest.raises(CriterionError, match=rf"'bad' must return a tensor of shape \(3,\) for 'conv', got {got}"):
        criterion(GroupStats("g", "conv", 3))


def test_what_a_function_raises_names_the_criterion_and_the_layer():
    criterion = registered("bad", function=lambda stats: torch.ones(3).reshape(2, 2)).get("bad")
    with pytest.raises(CriterionError, match=r"'bad' failed for 'conv': RuntimeError: shape '\[2, 2\]' is invalid"):
        criterion(GroupStats("g", "conv", 3))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you ...")])
def test_a_lack_of_memory_is_no_criterions_fault(error):
    def hungry(stats):
        raise error

    with pytest.raises(type(error)):
        registered("hungry", function=hungry).get("hungry")(GroupStats("g", "conv", 3))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules and declares each as an entry point."""

    def declare(**modules):
        points = []
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(source)
            monkeypatch.delitem(sys.modules, name, raising=False)
            points.append(EntryPoint(f"point_{name}", name, "blend.criteria"))
        monkeypatch.setattr(registry, "entry_points", lambda group: points)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "foreign", Registry("blend.criteria"), raising=False)
    return declare


REGISTER = "import sys\n@sys.foreign.register({!r}, family='f', needs=(), reference='r')\ndef score(stats): 'Doc.'\n"


ELSEWHERE = """
import sys
from criteria.gradient import taylor_fo
sys.foreign.register("d", family="f", needs=(), reference="r")(taylor_fo)
"""


def test_other_packages_add_criteria_at_the_first_look_up(package):
    package(foreign_a=REGISTER.format("a") + "print('once')", foreign_b=REGISTER.format("b"))
    assert "foreign_a" not in sys.modules
    assert sys.foreign.names() == ("a", "b")
    assert sys.foreign.get("b").summary == "Doc."


def test_one_that_a_task_has_imported_before_may_register_what_is_defined_elsewhere(package):
    package(foreign_d=ELSEWHERE)
    sys.foreign.register("own", family="f", needs=(), reference="r")(lambda stats: None)
    points, sys.foreign._entry_point_group = sys.foreign._entry_point_group, None
    import_module("foreign_d")
    sys.foreign._entry_point_group = points
    assert sys.foreign.names() == ("d", "own")


def test_they_are_loaded_once(package, capsys):
    package(foreign_c=REGISTER.format("c") + "print('loaded')")
    sys.foreign.names()
    del sys.modules["foreign_c"]
    assert "c" in sys.foreign
    assert capsys.readouterr().out == "loaded\n"


def test_a_broken_package_is_named_each_time(package):
    package(foreign_d=REGISTER.format("d"), foreign_e=REGISTER.format("e") + "import no_such_module")
    for _ in range(2):
        with pytest.raises(
            CriterionError, match=r"'point_foreign_e' = 'foreign_e' of group 'blend\.criteria' must load"
        ):
            sys.foreign.get("d")


def test_a_repaired_package_is_loaded_after_all(package, monkeypatch):
    package(foreign_h=REGISTER.format("h"), foreign_i=REGISTER.format("i") + "import repaired_module")
    with pytest.raises(CriterionError, match="ModuleNotFoundError: No module named 'repaired_module'"):
        sys.foreign.names()
    monkeypatch.setitem(sys.modules, "repaired_module", sys)
    assert sys.foreign.names() == ("h", "i")


def test_a_package_that_registers_nothing_is_named(package):
    package(foreign_j=REGISTER.format("j"), foreign_k="def register_all(): pass")
    with pytest.raises(CriterionError, match=r"'point_foreign_k' .* must be a module that registers criteria when"):
        sys.foreign.get("j")


def test_a_package_that_is_imported_already_is_fine(package):
    package(foreign_l=REGISTER.format("l"))
    import_module("foreign_l")
    assert sys.foreign.names() == ("l",)


def test_a_package_cannot_replace_a_criterion(package):
    package(foreign_f=REGISTER.format("f"), foreign_g=REGISTER.format("f"))
    with pytest.raises(CriterionError, match=r"'point_foreign_g'.*must be unique, got 'f', which foreign_f registered"):
        len(sys.foreign)


# --- parameters ----------------------------------------------------------------------------------------------------


def test_a_criterion_without_parameters_has_none():
    assert dict(CRITERIA.get("l1").parameters) == {}
    assert dict(CRITERIA.get("obd").parameters) == {"probes": 8}
    assert CRITERIA.get("obd").needs == {"weight", "hessian_diagonal"}


def test_a_configured_criterion_says_how():
    criterion = CRITERIA.get("obd:probes=04")
    assert criterion.name == "obd:probes=4"
    assert dict(criterion.parameters) == {"probes": 4}
    assert criterion.needs == {"weight", "hessian_diagonal:probes=4"}
    assert criterion.side == "producer"
    assert criterion == CRITERIA.get(criterion.name)
    assert hash(criterion) == hash(CRITERIA.get(criterion.name))
    assert criterion != CRITERIA.get("obd")
    assert CRITERIA.get("obd:probes=8") == CRITERIA.get("obd")
    assert "obd:probes=4" in CRITERIA
    assert pickle.loads(pickle.dumps(criterion)) == criterion


def test_parameters_reach_the_function():
    def power(stats, *, exponent: int = 1, negative: bool = False):
        """Powers of the weight."""
        scores = stats.weight[:, 0] ** exponent
        return -scores if negative else scores

    own = registered("power", needs={"weight"}, function=power)
    stats = GroupStats("g", "conv", 2, weight=torch.tensor([[2.0], [3.0]]))
    assert own.get("power")(stats).tolist() == [2, 3]
    assert own.get("power:exponent=2")(stats).tolist() == [4, 9]
    assert own.get("power:negative=true:exponent=3").name == "power:exponent=3:negative=true"
    assert own.get("power:negative=true:exponent=3")(stats).tolist() == [-8, -27]


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("obd:probe=3", "parameter of 'obd' must be one of probes, got 'probe'; did you mean 'probes'"),
        ("obd:probes=x", "parameter 'probes' of 'obd' must be of type int, got 'x'"),
        ("obd:probes=0", "parameter 'probes' of 'obd' must be at least 1, got 0"),
        ("odb:probes=3", "must be a registered name, got 'odb'; did you mean 'obd'"),
        ("l1:probes=3", "parameter of 'l1' must be none, for it has none, got 'probes'"),
    ],
)
def test_wrong_parameters(specification, message):
    with pytest.raises(ValueError, match=message) as caught:
        CRITERIA.get(specification)
    assert isinstance(caught.value, CriterionError)


def test_names_and_parameters_that_could_not_be_asked_for_are_refused():
    for name in ("a:b", "a,b"):
        with pytest.raises(ValueError, match=f"must not contain ':' or ',', got '{name}'"):
            registered(name)
    with pytest.raises(ValueError, match="parameter 'size' of 'bad' must have a default"):
        registered("bad", function=lambda stats, *, size: torch.ones(stats.rows))


def test_a_configured_criterion_is_not_served_by_the_default_statistics():
    stats = GroupStats("g", "conv", 2, weight=torch.ones(2, 1), hessian_diagonal=torch.ones(2, 1))
    assert CRITERIA.get("obd").missing(stats) is None
    with pytest.raises(CriterionError, match="'obd:probes=4' needs the Hessian diagonal of 'conv'; it was not collect"):
        CRITERIA.get("obd:probes=4")(stats)
    variants = {"hessian_diagonal:probes=4": {"hessian_diagonal": torch.tensor([[4.0], [6.0]])}}
    both = GroupStats("g", "conv", 2, weight=torch.ones(2, 1), hessian_diagonal=torch.ones(2, 1), variants=variants)
    assert CRITERIA.get("obd:probes=4")(both).tolist() == [2, 3]
    assert CRITERIA.get("obd")(both).tolist() == [0.5, 0.5]
