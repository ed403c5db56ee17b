"""Evaluation.check: which scores miss their limit, by how much, and limits that cannot be meant."""

import json

import pytest
from evaluations import evaluation_of, with_mean

from keras_kd.evaluation import Failure


def rows(de, fi, overall, kl=0.1):
    values = {"de": de, "fi": fi, "overall": overall}
    return with_mean({row: {"macro_f1": value, "kl": kl} for row, value in values.items()})


def of(path, *, student=(0.60, 0.70, 0.65), other=(0.90, 0.90, 0.90), kl=0.1, name="student", **options):
    """A teacher, whose scores are bad, a student, and another one."""
    scores = {"teacher": rows(0.1, 0.1, 0.1), name: rows(*student, kl), "other": rows(*other)}
    return evaluation_of(scores, path, teacher="teacher", **options)


@pytest.fixture
def evaluation(tmp_path):
    return of(tmp_path / "evaluation.json")


def test_a_score_at_its_limit_keeps_it_and_one_below_does_not(evaluation):
    assert evaluation.check(fail_under={"macro_f1": 0.65}) == ()
    (failure,) = evaluation.check(fail_under={"macro_f1": 0.7})
    assert failure == Failure("student", "overall", "macro_f1", 0.65, 0.7, None)
    assert str(failure) == "student, overall: macro_f1 is 0.6500, 0.0500 below the limit of 0.7000"


def test_each_row_can_have_a_limit(evaluation):
    limits = {"de:macro_f1": 0.61, "fi:macro_f1": 0.69, "mean over languages:macro_f1": 0.66, "macro_f1": 0.5}
    assert {failure.language for failure in evaluation.check(fail_under=limits)} == {"de", "mean over languages"}


def test_the_teacher_is_not_checked_and_a_model_alone_is(evaluation, tmp_path):
    assert {failure.model for failure in evaluation.check(fail_under={"macro_f1": 0.95})} == {"student", "other"}
    for teacher in ("m", None):
        alone = evaluation_of({"m": rows(0.5, 0.5, 0.5)}, tmp_path / "alone.json", teacher=teacher)
        assert [failure.model for failure in alone.check(fail_under={"macro_f1": 0.6})] == ["m"]


def test_where_less_is_better_the_limit_is_the_most(tmp_path):
    evaluation = of(tmp_path / "evaluation.json", kl=0.25)
    assert evaluation.check(fail_over={"kl": 0.25, "de:kl": 0.3}) == ()
    (failure,) = evaluation.check(fail_over={"fi:kl": 0.2})
    assert str(failure) == "student, fi: kl is 0.2500, 0.0500 above the limit of 0.2000"


def test_a_drop_is_found_overall_and_in_every_language(tmp_path):
    earlier = of(tmp_path / "earlier.json", student=(0.60, 0.70, 0.65), kl=0.10)
    now = of(tmp_path / "now.json", student=(0.57, 0.71, 0.64), kl=0.13)
    assert now.check(against=earlier, max_drop={"macro_f1": 0.03, "kl": 0.03}) == ()
    found = now.check(against=earlier, max_drop={"macro_f1": 0.01})
    assert [failure[:3] for failure in found] == [("student", "de", "macro_f1")]  # overall, 0.65 - 0.64 is allowed
    assert str(found[0]) == "student, de: macro_f1 is 0.5700, 0.0200 below the limit of 0.5900, 0.6000 before"
    found = now.check(against=earlier, max_drop={"kl": 0.02})
    assert [failure.language for failure in found] == ["de", "fi", "overall"]
    assert str(found[2]) == "student, overall: kl is 0.1300, 0.0100 above the limit of 0.1200, 0.1000 before"
    assert earlier.check(against=now, max_drop={"kl": 0.0}) == ()  # better


def test_a_loss_of_just_what_is_allowed_is_no_failure_by_rounding(tmp_path):
    assert 0.93 - 0.06 > 0.87  # in floating point
    earlier = of(tmp_path / "earlier.json", student=(0.93, 0.93, 0.93))
    now = of(tmp_path / "now.json", student=(0.87, 0.87, 0.87))
    assert now.check(against=earlier, max_drop={"macro_f1": 0.06}) == ()


def test_a_language_of_its_own_limit_of_loss(tmp_path):
    earlier, now = of(tmp_path / "earlier.json"), of(tmp_path / "now.json", student=(0.57, 0.67, 0.65))
    for limits in ({"macro_f1": 0.01, "de:macro_f1": 0.05}, {"de:macro_f1": 0.05, "macro_f1": 0.01}):
        assert [failure.language for failure in now.check(against=earlier, max_drop=limits)] == ["fi"]
    assert now.check(against=earlier, max_drop={"de:macro_f1": 0.05}) == ()


def test_the_f1_of_a_class_is_checked_overall(tmp_path):
    def with_class(value, path):
        scores = rows(0.5, 0.5, 0.5)
        scores["overall"]["f1:no"] = value
        return evaluation_of({"m": scores}, path)

    now, earlier = with_class(0.4, tmp_path / "now.json"), with_class(0.6, tmp_path / "earlier.json")
    assert now.check(fail_under={"f1:no": 0.5})[0][:3] == ("m", "overall", "f1:no")
    (failure,) = now.check(against=earlier, max_drop={"f1:no": 0.1})
    assert failure[:3] == ("m", "overall", "f1:no")
    with pytest.raises(ValueError, match=r"fail_under must name a metric.*got 'de:f1:no'"):
        now.check(fail_under={"de:f1:no": 0.5})


def test_an_earlier_evaluation_is_read_from_its_file(evaluation, tmp_path):
    evaluation.to_json(tmp_path / "again.json")
    again = type(evaluation).from_json(tmp_path / "again.json")
    assert evaluation.check(against=again, max_drop={"macro_f1": 0.0}) == ()


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        (
            {"fail_under": {"f1": 0.5}},
            ValueError,
            r"fail_under must name a metric, one of \['macro_f1', 'kl'\], .*'f1'",
        ),
        ({"fail_under": {"sw:macro_f1": 0.5}}, ValueError, r"one of \['de', 'fi', .*'overall'\]; got 'sw:macro_f1'"),
        ({"fail_over": {"de:f1": 0.5}}, ValueError, "fail_over must name a metric.*got 'de:f1'"),
        ({"fail_under": {"kl": 0.5}}, ValueError, "fail_under must not hold 'kl', .* give it to fail_over"),
        ({"fail_over": {"de:macro_f1": 0.5}}, ValueError, "fail_over must not hold 'de:macro_f1', .* to fail_under"),
        ({"fail_under": {"macro_f1": "0.5"}}, TypeError, r"fail_under\['macro_f1'\] must be .* got '0.5'"),
        ({"fail_under": {"macro_f1": float("nan")}}, ValueError, r"fail_under\['macro_f1'\] must be a finite number"),
        ({"fail_under": ["macro_f1"]}, TypeError, "fail_under must be a dict of metric to number, got list"),
        ({"max_drop": {"macro_f1": 0.1}}, ValueError, "against and max_drop must come together"),
    ],
)
def test_limits_that_cannot_be_meant(evaluation, limits, error, message):
    with pytest.raises(error, match=message):
        evaluation.check(**limits)


def test_earlier_evaluations_that_do_not_fit(evaluation, tmp_path):
    def refused(against, message, error=ValueError, max_drop=None):
        with pytest.raises(error, match=message):
            evaluation.check(against=against, max_drop=max_drop or {"macro_f1": 0.1})

    refused(tmp_path / "evaluation.json", r"against must be an Evaluation, got PosixPath\. .*from_json", TypeError)
    refused(evaluation, r"max_drop\['macro_f1'\] must be >= 0", max_drop={"macro_f1": -0.1})
    with pytest.raises(ValueError, match="must come together"):
        evaluation.check(against=evaluation)
    renamed = of(tmp_path / "renamed.json", name="small")
    refused(renamed, r"against must hold 'macro_f1' of 'student' for 'de', but its models are \['teacher', 'small'")
    more = of(tmp_path / "more.json", examples=120)
    refused(more, "on the same examples, but has 120 for 'de', where there are 100 now")
    content = json.loads((tmp_path / "evaluation.json").read_text())
    content["languages"].remove("fi")
    content["scores"] = [score for score in content["scores"] if score["language"] != "fi"]
    (tmp_path / "less.json").write_text(json.dumps(content))
    less = type(evaluation).from_json(tmp_path / "less.json")
    refused(less, r"'student' for 'fi', but its rows are \['de', 'mean over languages', 'overall'\]")
