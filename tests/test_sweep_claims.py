"""Claims: one owner at a time, whoever asks; taken over from the dead, kept from the living; and the rules."""
import concurrent.futures
import json
import os
import subprocess
import sys
import time

import damage
import pytest

from lm import config
from lm.sweep import claims
from lm.sweep.rules import Halving, Median


def test_of_many_workers_one_gets_a_trial(tmp_path):
    desks = [claims.Claims(tmp_path) for _ in range(16)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for trial in map(str, range(20)):
            assert sum(pool.map(lambda desk, trial=trial: desk.take(trial), desks)) == 1


def test_a_released_trial_is_free_at_once(tmp_path):
    first, second = claims.Claims(tmp_path), claims.Claims(tmp_path)
    assert first.take('a') and not second.take('a')
    first.release('a')
    assert second.take('a') and not first.take('a')


def test_a_dead_process_of_this_host_loses_its_claim_at_once(tmp_path):
    code = f'from lm.sweep import claims; print(claims.Claims({str(tmp_path)!r}).take("a"))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'True'
    desks = [claims.Claims(tmp_path) for _ in range(4)]
    assert [desk.take('a') for desk in desks] == [True, False, False, False]


def test_another_host_is_dead_when_its_beat_stays_the_same_and_only_then(tmp_path, monkeypatch):
    desk, now = claims.Claims(tmp_path), [1000.0]
    monkeypatch.setattr(claims.time, 'monotonic', lambda: now[0])
    claim = tmp_path / 'claims' / 'a.3'
    for beat in range(5):
        claim.write_text(json.dumps({'host': 'elsewhere', 'pid': 1, 'beat': beat, 'time': 0}))
        assert not desk.take('a')
        now[0] += claims.DEAD - 1
    assert not desk.take('a')
    now[0] += 2
    assert desk.take('a') and desk.newest() == {'a': 4}


def test_a_claim_cut_short_is_watched_like_any_other(tmp_path, monkeypatch):
    desk, now = claims.Claims(tmp_path), [0.0]
    monkeypatch.setattr(claims.time, 'monotonic', lambda: now[0])
    (tmp_path / 'claims' / 'a.1').write_text('')
    assert not desk.take('a')
    now[0] += claims.DEAD
    assert desk.take('a')


GARBLED = [b'', b'null', b'[]', b'{}', b'\xff', b'{"host": "@", "pid"', b'[' * 9999, b'{"released": 1}',
           b'{"released": false}', b'{"host": 3, "pid": 1}',
           *(b'{"host": "@", "beat": 1, "pid": %s}' % pid for pid in (b'null', b'"1"', b'1.0', b'true', b'0', b'-1',
                                                                       b'4294967297', b'9' * 400))]


@pytest.mark.parametrize('content', GARBLED)
def test_a_garbled_claim_is_watched_like_another_machines_and_then_taken_over_by_one(tmp_path, monkeypatch, capsys,
                                                                                     content):
    desks, now = [claims.Claims(tmp_path) for _ in range(3)], [0.0]
    monkeypatch.setattr(claims.time, 'monotonic', lambda: now[0])
    path = tmp_path / 'claims' / 'a.3'
    path.write_bytes(content.replace(b'@', claims.host().encode()))
    assert not any(desk.take('a') for desk in desks)
    now[0] += claims.DEAD - 1
    assert not any(desk.take('a') for desk in desks) and not capsys.readouterr().err
    now[0] += 1
    assert [desk.take('a') for desk in desks] == [True, False, False] and desks[0].newest() == {'a': 4}
    assert capsys.readouterr().err.splitlines() == [
        f'lm: {path} cannot be read as a claim: the trial is free, as it has not changed for 30 s.']


@pytest.mark.parametrize('obstacle', [damage.directory, damage.fifo, damage.loop, damage.dangling])
def test_a_claim_that_is_no_file_is_like_a_garbled_one(tmp_path, monkeypatch, obstacle):
    desk, now = claims.Claims(tmp_path), [0.0]
    monkeypatch.setattr(claims.time, 'monotonic', lambda: now[0])
    obstacle(tmp_path / 'claims' / 'a.3')
    assert not desk.take('a')
    now[0] += claims.DEAD
    assert desk.take('a') and desk.newest() == {'a': 4}


@pytest.mark.parametrize('name', [
    'a.²', 'a.٣', 'a.03', 'a.0', 'a.-1', 'a.1.5x', f'a.{"9" * 23}', 'a.', 'a', 'a.1~', 'b\n.1'])
def test_a_file_that_is_named_for_no_claim_is_left_alone_with_one_warning(tmp_path, capsys, name):
    desk = claims.Claims(tmp_path)
    (tmp_path / 'claims' / name).write_text('')
    (tmp_path / 'claims' / '.a.1.77').write_text('')  # being written
    assert desk.newest() == {} and desk.take('a') and desk.newest() == {'a': 1}
    shown = capsys.readouterr().err
    assert shown == f'lm: {tmp_path}/claims/{" ".join(name.splitlines())} is no claim, and is left alone.\n'


@pytest.mark.parametrize('content', [b'', b'null', b'{"released": false}'])
def test_a_garbled_claim_over_one_that_lives_is_claimed_over(tmp_path, monkeypatch, content):
    left = []
    monkeypatch.setattr(claims, 'PERIOD', 0.01)
    monkeypatch.setattr(claims, '_leave', left.append)
    other = claims.Claims(tmp_path)
    with claims.Claims(tmp_path) as desk:
        assert desk.take('a')
        (tmp_path / 'claims' / 'a.2').write_bytes(content)
        while desk.own['a'] != 3:
            time.sleep(0.01)
        assert not other.take('a') and other.newest() == {'a': 3}
        assert json.loads((tmp_path / 'claims' / 'a.3').read_bytes())['pid'] == os.getpid()
    assert not left and other.take('a')


def test_a_folder_of_claims_that_is_gone_is_one_line(tmp_path):
    desk = claims.Claims(tmp_path)
    damage.absent(tmp_path / 'claims')
    with pytest.raises(config.Error, match=f'cannot write to {tmp_path}/claims: No such file or directory'):
        desk.take('a')


def test_a_worker_beats_and_ends_when_it_was_taken_for_dead(tmp_path, monkeypatch):
    left = []
    monkeypatch.setattr(claims, 'PERIOD', 0.01)
    monkeypatch.setattr(claims, '_leave', left.append)
    with claims.Claims(tmp_path) as desk:
        assert desk.take('a')
        before = desk.count
        while desk.count < before + 3:
            pass
        assert not left
        (tmp_path / 'claims' / 'a.2').write_text(json.dumps({'host': 'elsewhere', 'pid': 1, 'beat': 1}))
        while not left:
            pass
    assert set(left) == {'a'}


def test_a_slow_process_is_alive_and_a_deadlocked_one_is_not():
    slow, hung, hour = claims.CpuWatchdog(), claims.CpuWatchdog(), claims.HUNG
    assert all(slow.alive(minute * 60, 2 * claims.LEAST * minute * 60) for minute in range(600))
    assert hung.alive(0, 5.0) and hung.alive(hour - 1, 5.0) and not hung.alive(hour, 5.1)
    assert hung.alive(hour + 60, 5.0 + 2 * claims.LEAST * hour), 'it woke up'


def test_a_hung_worker_stops_beating_and_leaves_when_another_takes_over(tmp_path, monkeypatch):
    left, alive = [], [True]
    monkeypatch.setattr(claims, 'PERIOD', 0.01)
    monkeypatch.setattr(claims, '_leave', left.append)
    monkeypatch.setattr(claims.CpuWatchdog, 'alive', lambda self, now, used: alive[0])
    with claims.Claims(tmp_path) as desk:
        assert desk.take('a')
        while desk.count < 3:
            pass
        alive[0] = False
        time.sleep(0.05)
        before = desk.count
        time.sleep(0.1)
        assert desk.count == before and not left
        (tmp_path / 'claims' / 'a.2').write_text(json.dumps({'host': 'elsewhere', 'pid': 1, 'beat': 1}))
        while not left:
            pass
    assert set(left) == {'a'}


def test_halving_lets_the_best_share_of_each_rung_go_on():
    rule = Halving(first=10, factor=3)
    assert [step for step in range(100) if rule.judges(step)] == [10, 30, 90]
    at_first = [{10: float(loss)} for loss in range(9)]
    assert [rule.allows(each, at_first) for each in at_first] == [True] * 3 + [False] * 6
    later = [{10: 0.0, 30: 5.0}, {10: 1.0, 30: None}, {10: 2.0, 20: 1.0, 30: 4.0}, *at_first[3:]]
    assert [rule.allows(each, later) for each in later] == [False, False, True] + [False] * 6
    assert rule.allows({5: 9.0}, at_first) and rule.allows({10: 3.0}, [{10: 3.0}])


def test_a_trial_halted_goes_on_when_others_turn_out_worse():
    rule, mine = Halving(first=1, factor=2), {1: 1.0}
    assert not rule.allows(mine, [mine, {1: 0.0}])
    assert rule.allows(mine, [mine, {1: 0.0}, {1: 2.0}, {1: 3.0}])


def test_median_stops_what_is_worse_than_half_the_others_have_been():
    rule = Median(first=4, least=2)
    good, fair = {2: 3.0, 4: 1.0, 6: 0.5}, {2: 4.0, 4: 2.0}
    assert rule.allows({2: 4.0, 4: 2.4}, [good, fair]) and not rule.allows({2: 4.0, 4: 2.6}, [good, fair])
    assert rule.allows({2: 9.0}, [good, fair]) and rule.allows({2: 9.0, 4: 9.0}, [good])
    assert not rule.allows({2: 9.0, 4: None}, [good, fair])


@pytest.mark.parametrize('make, message', [
    (lambda: Halving(first=0), 'first=0 is not a step'),
    (lambda: Halving(first=1, factor=1), 'factor=1 stops no trial'),
])
def test_rules_refuse_numbers_that_judge_nothing(make, message):
    with pytest.raises(config.Error, match=message):
        make()
