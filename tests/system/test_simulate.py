"""`llmos simulate`, `record` and `calibrate` from the command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from kernel.policy.registry import PolicySettings, make_policy
from llmosd.simulator import recording
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.simulation import Simulation
from tests.support.daemon import SCRIPTS


def llmos(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, without any daemon."""
    command = [SCRIPTS / "llmos", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_textbook():
    out = llmos("simulate", "--example", "textbook")
    assert out.returncode == 0
    assert "order P5, P4, P3, P2, P1; 15 slices, 1500 ms in all" in out.stdout
    assert "A x T / n" in out.stdout


def test_policies_are_compared_in_a_table_as_json_and_in_plots(tmp_path):
    arguments = ["simulate", "--tasks", "20", "--seeds", "2", "--device", "simulated"]
    table = llmos(*arguments, "--policy", "fifo,attained")
    assert table.returncode == 0
    assert "20 tasks (programs) at a load of 0.9, 2 seeds; 4 slots of the simulated driver" in table.stdout
    assert "task per token, mean (s)" in table.stdout
    assert "FIFO" in table.stdout
    assert "ATTAINED" in table.stdout
    answer = json.loads(llmos(*arguments, "--policy", "fifo", "--json", "--plot", str(tmp_path)).stdout)
    assert set(answer["policies"]) == {"fifo"}
    mean = answer["policies"]["fifo"]["call.mean"]
    assert mean["low"] < mean["mean"] < mean["high"]
    assert len(answer["files"]) == 10
    assert all(Path(file).stat().st_size > 1000 for file in answer["files"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "lottery"], "no policy 'lottery'"),
        (["--policy", "round_robin", "--quantum", "0"], "the quantum is 0"),
        (["--workload", "nothing"], "no workload 'nothing', and no such file"),
        (["--load", "0"], "a load of 0"),
        (["--deadline", "-1"], "in the past"),
        (["--slots", "0"], "0 slots"),
        (["--seeds", "0"], "0 seeds"),
        (["--tasks", "0"], "0 tasks"),
        (["--device", "toaster"], "no device 'toaster'"),
        (["--plot", "/dev/null/plots"], "name a folder that can be written"),
    ],
)
def test_bad_input_is_named_and_says_what_to_do(arguments, said):
    out = llmos("simulate", *arguments)
    assert out.returncode in (1, 2)
    assert said in out.stderr
    assert "Traceback" not in out.stderr


def test_a_recorded_run_is_simulated(daemon, tmp_path):
    with daemon.client() as client:
        for number in range(5):
            client.run("ask", {"question": f"question {number}", "max_tokens": 10 + number})
    path = tmp_path / "run.json"
    out = daemon.llmos("record", str(path), "--last", "--seconds", "0", "--json")
    assert json.loads(out.stdout) == {"calls": 5, "lost": 0}
    calls = json.loads(path.read_text())["calls"]
    assert [call["generated"] for call in calls] == [10, 11, 12, 13, 14]
    assert [call["limit"] for call in calls] == [10, 11, 12, 13, 14]
    assert all(call["submitted"] <= call["started"] <= call["first"] <= call["ended"] for call in calls)
    simulated = llmos("simulate", "--workload", str(path), "--policy", "fifo", "--device", "simulated", "--json")
    answer = json.loads(simulated.stdout)
    assert "5 calls recorded in run.json" in answer["what"]
    assert answer["policies"]["fifo"]["calls"]["mean"] == 5


def test_recording_sees_what_ends_meanwhile_and_nothing_from_before(daemon, tmp_path):
    with daemon.client() as client:
        client.run("ask", {"question": "before", "max_tokens": 3})
        command = [SCRIPTS / "llmos", "record", tmp_path / "run.json", "--socket", daemon.socket]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as recorder:
            assert "recording" in recorder.stderr.readline()
            client.run("ask", {"question": "meanwhile", "max_tokens": 4})
            recorder.send_signal(2)
            assert recorder.communicate(timeout=60)[0] == "1 calls\n"
    assert [call["generated"] for call in json.loads((tmp_path / "run.json").read_text())["calls"]] == [4]


def test_a_running_daemon_is_calibrated(daemon, tmp_path):
    path = tmp_path / "device.toml"
    out = daemon.llmos("calibrate", str(path), "--json")
    found = json.loads(out.stdout)
    assert found["source"].startswith("model simulated (simulated driver)")
    assert found["step"] >= 0.001  # the driver's step is 2 ms; calibration may count a part of it per sequence
    assert found["error"] is not None
    again = llmos("simulate", "--device", str(path), "--tasks", "5", "--seeds", "1", "--policy", "fifo")
    assert again.returncode == 0


def test_the_simulator_says_what_the_daemon_does(start, folder, tmp_path):
    """The short form of tests/bench/simulated.py.

    That one prints times of this machine, which this test never asserts: it checks that the same calls end in much the
    same order on a device with known costs.
    """
    config = folder / "config.toml"
    costs = "step_seconds = 0.01, sequence_seconds = 0.002, prompt_seconds = 0.0005"
    config.write_text(f'[models.simulated]\ndriver = "simulated"\nslots = 2\noptions = {{ {costs} }}\n')
    daemon = start("--config", str(config))
    with daemon.client() as client:
        # Lengths so different that no noise turns the order around.
        tokens = (50, 4, 12, 70, 10, 60)
        tasks = [client.submit("ask", {"question": f"q {n}", "max_tokens": n}) for n in tokens]
        for task in tasks:
            task.result()
    path = tmp_path / "run.json"
    assert daemon.llmos("record", str(path), "--last", "--seconds", "0").returncode == 0
    recorded = recording.read(path)
    device = DeviceModel(step=0.01, sequence=0.002, prompt=0.0005)
    run = Simulation(recording.tasks(recorded), device, make_policy(PolicySettings(kind="priority")), 2).run()
    origins = recording.origins(recorded)
    simulated = {(*origins[call.task], call.place): call.end for call in run.calls}
    measured = recording.ends(recorded.calls)
    assert simulated.keys() == measured.keys()
    assert sum(call.tokens for call in run.calls) == sum(tokens)
    names = {key: number for number, key in enumerate(measured)}
    ends = ({names[key]: end for key, end in side.items()} for side in (measured, simulated))
    assert recording.order_agreement(*ends) >= 0.9
