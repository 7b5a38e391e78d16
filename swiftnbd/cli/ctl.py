# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl``: work on the containers themselves, without the server."""

from collections.abc import Sequence

import click

from swiftnbd.cli import run
from swiftnbd.cli.common import PROGRAM
from swiftnbd.cli.ctl_bench import bench_command
from swiftnbd.cli.ctl_check import check_command
from swiftnbd.cli.ctl_check_auth import check_auth_command
from swiftnbd.cli.ctl_copy import copy_command
from swiftnbd.cli.ctl_delete import delete_command
from swiftnbd.cli.ctl_download import download_command
from swiftnbd.cli.ctl_info import info_command
from swiftnbd.cli.ctl_list import list_command
from swiftnbd.cli.ctl_locate import locate_command
from swiftnbd.cli.ctl_lock import lock_command, unlock_command
from swiftnbd.cli.ctl_resize import resize_command
from swiftnbd.cli.ctl_setup import setup_command
from swiftnbd.cli.ctl_trim import trim_command
from swiftnbd.cli.ctl_upload import upload_command
from swiftnbd.cli.exits import EPILOG
from swiftnbd.cli.options import SharedOptions, shared_options
from swiftnbd.log import log_for_ctl


@click.group(
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    commands=[
        check_auth_command,
        list_command,
        info_command,
        locate_command,
        setup_command,
        resize_command,
        lock_command,
        unlock_command,
        upload_command,
        download_command,
        copy_command,
        trim_command,
        check_command,
        delete_command,
        bench_command,
    ],
)
@shared_options
@click.pass_context
def ctl(context: click.Context, /, options: SharedOptions) -> None:
    """Set up, lock, copy, check and delete the containers that swiftnbd-server exports."""
    log_for_ctl(verbose=options.verbose)
    context.obj = options


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run.leave(run.run(ctl, PROGRAM, argv))
