"""When rules fire and when they are over, on a clock of the test."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from glmserve.observe.alert_file import parse_alert_rules
from glmserve.observe.alerts import Alerts, Notice
from glmserve.observe.readings import History, Readings

WAITING = "glmserve:num_requests_waiting"


class Scene:
    """One rule, a clock that the test turns, and a server whose queue the test sets."""

    def __init__(self, **keys: object) -> None:
        given = {
            "name": "queue",
            "signal": "requests_waiting",
            "above": 10,
            "over": 0,
            "for": 30,
            "resolve_after": 20,
            "repeat": 100,
            **keys,
        }
        given = {key: value for key, value in given.items() if value is not None}
        rules = parse_alert_rules(str({"rules": [given]}), "test")
        self.history = History(60)
        self.alerts = Alerts(rules, "http://box", wall_clock=lambda: 0.0)
        self.now = 0.0

    def at(self, second: float, waiting: float | None, reachable: bool = True) -> list[Notice]:
        self.now = second
        if reachable:
            self.history.add(Readings.parse("" if waiting is None else f"{WAITING} {waiting}\n", second))
        return self.alerts.look(self.history, second, reachable)

    def told(self, course: Sequence[tuple[float, float | None]]) -> list[tuple[float, str]]:
        return [(second, str(notice.status)) for second, waiting in course for notice in self.at(second, waiting)]


def test_it_fires_after_for_and_ends_after_resolve_after() -> None:
    course = [(0, 50.0), (15, 50.0), (30, 50.0), (45, 50.0), (60, 3.0), (75, 3.0), (80, 3.0), (95, 3.0)]
    assert Scene().told(course) == [(30, "firing"), (80, "resolved")]


def test_a_short_peak_and_a_short_relief_say_nothing() -> None:
    assert Scene().told([(0, 50.0), (20, 50.0), (29, 5.0), (30, 50.0), (59, 50.0)]) == []
    firing = [(0, 50.0), (30, 50.0)]
    assert Scene().told([*firing, (40, 5.0), (55, 50.0), (70, 5.0), (89, 5.0)]) == [(30, "firing")]


def test_a_value_that_swings_about_the_threshold_rings_once() -> None:
    swinging = [(30 + 10 * i, 12.0 if i % 2 else 8.0) for i in range(1, 8)]
    assert Scene(resolve_at=5, resolve_after=0, repeat=0).told([(0, 50.0), (30, 50.0), *swinging]) == [(30, "firing")]
    assert Scene(resolve_at=5, resolve_after=0).told([(0, 50.0), (30, 50.0), (40, 5.0)]) == [(30, "firing"), (40, "resolved")]


def test_it_is_told_again_while_it_lasts() -> None:
    scene = Scene()
    course = [(float(second), 50.0) for second in range(0, 260, 10)]
    assert [second for second, _ in scene.told(course)] == [30, 130, 230]
    assert [rule.name for rule in scene.alerts.firing] == ["queue"]
    assert len(Scene(repeat=0).told(course)) == 1


def test_below_and_at_once() -> None:
    scene = Scene(above=None, below=5, **{"for": 0})
    assert scene.told([(0, 5.0), (1, 4.0)]) == [(1, "firing")]


def test_nothing_reported_never_fires_and_ends_what_fired() -> None:
    assert Scene().told([(float(second), None) for second in range(0, 90, 10)]) == []
    assert Scene().told([(0, 50.0), (30, 50.0), (40, None), (60, None)]) == [(30, "firing"), (60, "resolved")]


def test_an_unreachable_server_leaves_other_alerts_as_they_are() -> None:
    scene = Scene()
    scene.at(0, 50.0)
    scene.at(30, 50.0)
    assert scene.at(60, None, reachable=False) == []
    assert scene.at(200, None, reachable=False) == []
    assert [rule.name for rule in scene.alerts.firing] == ["queue"]


def test_unreachable_is_a_signal_of_its_own() -> None:
    scene = Scene(signal="unreachable", above=0)
    assert scene.at(0, None, reachable=False) == []
    (notice,) = scene.at(30, None, reachable=False)
    assert notice.text == "FIRING [warning] queue at http://box: it does not answer"
    scene.at(40, 1.0)
    (over,) = scene.at(60, 1.0)
    assert over.text == "RESOLVED [warning] queue at http://box: it answers again, after 30 s"


def test_words_for_people_and_fields_for_machines() -> None:
    scene = Scene(message="Add a replica.", severity="critical")
    scene.at(0, 50.0)
    (notice,) = scene.at(30, 50.0)
    assert notice.text == "FIRING [critical] queue at http://box: requests_waiting is 50, above 10. Add a replica."
    assert notice.fields() == {
        "status": "firing", "rule": "queue", "severity": "critical", "signal": "requests_waiting", "value": 50.0, "threshold": 10.0,
        "server": "http://box", "message": "Add a replica.", "text": notice.text, "time": "1970-01-01T00:00:00+00:00",
    }  # fmt: skip
    (again,) = scene.at(630, 50.0)
    assert again.text.startswith("FIRING [critical] queue at http://box: requests_waiting is 50, above 10, for 10 min.")
    scene.at(640, 0.0)
    (over,) = scene.at(660, 0.0)
    assert over.text == "RESOLVED [critical] queue at http://box: requests_waiting is 0 again, after 10 min"


@pytest.mark.parametrize(("value", "shown"), [(0.913, "91%"), (0.0123, "1.2%")])
def test_shares_are_shown_in_percent(value: float, shown: str) -> None:
    scene = Scene(signal="kv_usage", above=0, **{"for": 0})
    scene.history.add(Readings.parse(f"glmserve:kv_cache_usage_perc {value}\n", 0.0))
    (notice,) = scene.alerts.look(scene.history, 0.0)
    assert f"kv_usage is {shown}, above 0%" in notice.text


def test_a_rule_whose_signal_is_not_reported_is_named() -> None:
    scene = Scene(signal="mbu", name="memory")
    scene.at(0, 1.0)
    assert scene.history.last is not None
    assert scene.alerts.unwatchable(scene.history.last) == ["alert rule 'memory' is idle: http://box does not report mbu"]
    assert Scene().alerts.unwatchable(Readings.parse(f"# TYPE {WAITING} gauge\n", 0.0)) == []
