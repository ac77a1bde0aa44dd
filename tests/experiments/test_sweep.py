"""Sweeps: points of a grid, their commands, the folder, the script that Slurm is given."""

from pathlib import Path

import pytest

from experiments import sweep
from experiments.sweep import Arguments, command_of, executor_of, main, name_of, points_of, write_plan

submitit = pytest.importorskip("submitit")
GRID = ("net.widths=16 16,32 32", "factor=2,3")


def test_points_are_the_product_of_the_axes():
    points = points_of(GRID)
    assert [name_of(point) for point in points] == [
        *("net.widths=16_16,factor=2", "net.widths=16_16,factor=3"),
        *("net.widths=32_32,factor=2", "net.widths=32_32,factor=3"),
    ]
    command = command_of(Arguments("cloning", grid=GRID, name="widths"), points[0], ["--preset", "paper"])
    assert command[1:] == [
        *("-m", "experiments.cloning", "--preset", "paper", "--net.widths", "16", "16", "--factor", "2"),
        *("--root", "runs", "--name", "widths/net.widths=16_16,factor=2", "--resume"),
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["cloning"], "--grid: must be given once for each flag, at least once"),
        (["cloning", "--grid", "factor"], "--grid 'factor': must be a flag and values"),
        (["cloning", "--grid", "factor=2,"], "must be a flag and values"),
        (["cloning", "--grid", "factor=2", "--grid", "factor=3"], "once for each flag"),
        (["baking", "--grid", "factor=2"], "there is no package experiments.baking"),
    ],
)
def test_mistakes_are_one_line(argv, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--root", str(tmp_path)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_belongs_to_one_sweep(tmp_path):
    arguments = Arguments("cloning", grid=GRID, root=tmp_path)
    for _ in range(2):
        write_plan(tmp_path / "sweep", arguments, points_of(GRID), [])
    with pytest.raises(ValueError, match="holds another sweep"):
        write_plan(tmp_path / "sweep", arguments, points_of(GRID), ["--preset", "paper"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is a run"):
        write_plan(tmp_path / "run", arguments, points_of(GRID), [])


def test_the_slurm_script_asks_for_what_the_flags_say(tmp_path, monkeypatch):
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 1))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    flags = Arguments("cloning", grid=GRID, executor="slurm", jobs=3, minutes=90, cpus=4, gpus=1, partition="gpu")
    executor = executor_of(flags, tmp_path)
    text = executor._make_submission_file_text("python job.py", "id")
    for line in ("--time=90", "--cpus-per-task=4", "--gpus-per-node=1", "--partition=gpu", "--mem=8GB"):
        assert f"#SBATCH {line}" in text
    assert "--job-name=cloning-sweep" in text
    # A node that is taken away: the job asks for the same command again, which resumes.
    again = sweep.Job(["true"]).checkpoint()
    assert again.function.command == ["true"]


def test_a_job_is_the_command_in_a_process_of_its_own(tmp_path):
    assert sweep.Job(["python", "-c", "raise SystemExit(3)"])() == 3
    written = tmp_path / "written"
    assert sweep.Job(["python", "-c", f"open({str(written)!r}, 'w').close()"])() == 0
    assert Path(written).exists()
