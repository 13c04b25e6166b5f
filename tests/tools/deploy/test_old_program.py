"""Reading the supervisor file of an old demo, and putting a section in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from glmserve.protocol.errors import SettingsError
from glmserve.tools.deploy.old_program import OldProgram, read_old_program
from glmserve.tools.deploy.write import with_section_replaced

Reader = Callable[..., OldProgram]
FILE = """\
; kept as it is
[program:tensorboard]
command=tensorboard --port 6006

; the demo
[program:chatglm] ; 2023
command=/opt/env/bin/python web_demo.py {flags}
directory={folder}
user=glm
environment={environment}
stdout_logfile=/var/log/%(program_name)s.log

; what follows
[group:web]
programs=chatglm,tensorboard
"""


@pytest.fixture
def old(tmp_path: Path) -> Reader:
    def old(flags: str = "", environment: str = "", script: str = "", program: str = ":chatglm", text: str = FILE) -> OldProgram:
        (tmp_path / "web_demo.py").write_text(script)
        file = tmp_path / "demo.conf"
        file.write_text(text.format(flags=flags, environment=environment, folder=tmp_path))
        return read_old_program(f"{file}{program}")

    return old


@pytest.mark.parametrize(
    ("flags", "environment", "script", "port"),
    [
        ("--port 7861", "", "", 7861),
        ("--server-port=7862", "", "demo.launch(server_port=1)", 7862),
        ("--bind 0.0.0.0:8001", "", "", 8001),
        ("", 'A="x,y=1",GRADIO_SERVER_PORT="7863"', "import gradio", 7863),
        ("", "", "demo.queue().launch(share=False, inbrowser=True, server_port=7864)", 7864),
        ("", "", "uvicorn.run(app, host='0.0.0.0', port=8002, workers=1)", 8002),
        ("", "", "import gradio as gr\ndemo.queue().launch(share=False, inbrowser=True)", 7860),
        ("", "", "import streamlit", 8501),
    ],
)
def test_the_port_is_found_where_such_programs_say_it(old: Reader, flags: str, environment: str, script: str, port: int) -> None:
    assert old(flags, environment, script).port() == port


@pytest.mark.parametrize("script", ["", "print('no server')", "def broken(:", "run(port=int(x))"])
def test_a_port_that_nothing_tells_is_asked_for(old: Reader, script: str) -> None:
    with pytest.raises(SettingsError, match="--port"):
        old(script=script).port()


def test_what_is_kept_is_read_as_supervisor_reads_it(old: Reader) -> None:
    program = old(environment='CUDA_VISIBLE_DEVICES="1",HF_HOME="/data"')
    assert (program.name, program.group, program.is_main_file) == ("chatglm", "web", False)
    assert (program.kept("user"), program.kept("stdout_logfile")) == ("glm", "/var/log/%(program_name)s.log")
    assert program.kept("priority") is None
    assert program.environment == {"CUDA_VISIBLE_DEVICES": "1", "HF_HOME": "/data"}


def test_only_the_programs_own_section_is_replaced(old: Reader) -> None:
    program = old()
    lines = program.file.read_text().splitlines()
    replaced = with_section_replaced(program, "[program:chatglm]\ncommand=new\n").splitlines()
    section = lines[program.lines.start : program.lines.stop]
    assert section[0] == "[program:chatglm] ; 2023" and section[-1].startswith("stdout_logfile")
    assert replaced[: program.lines.start] == lines[: program.lines.start]
    assert replaced[-4:] == lines[-4:] == ["", "; what follows", "[group:web]", "programs=chatglm,tensorboard"]
    assert [line.removeprefix(";was: ") for line in replaced if line.startswith(";was: ")] == section


@pytest.mark.parametrize(
    ("program", "text", "says"),
    [
        ("", FILE, "several programs"),
        (":other", FILE, "no program other; it has tensorboard, chatglm"),
        ("", "[supervisord]\n", r"no \[program"),
        ("", "no file of that kind", "no supervisor file"),
        ("", "[program:x]\ncommand=x\nnumprocs=2\n", "numprocs"),
    ],
)
def test_a_file_that_will_not_do_is_said_to(old: Reader, program: str, text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        old(program=program, text=text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.conf cannot be read"):
        read_old_program(str(tmp_path / "missing.conf"))
