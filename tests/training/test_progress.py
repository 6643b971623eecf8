"""ConsoleProgress."""

import io

from rich.console import Console

from recurra.report.progress import ConsoleProgress


def test_console_progress_sample_escapes_control_characters():
    stream = io.StringIO()
    console = Console(file=stream, width=80, highlight=False)
    ConsoleProgress(console).sample("a\n", "b\x1b[2Jc\x00d\x9be\tf")
    assert stream.getvalue().strip() == "a⏎b␛[2Jc␀d\N{REPLACEMENT CHARACTER}e␉f"
