# SPDX-License-Identifier: MIT
# The commands of a page of docs/, as tests/docs/test_machine.py has put them into a file.
# shellcheck shell=sh disable=SC2154 # step and its helpers come from vm_init.sh

ln -s /usr/sbin/mke2fs /usr/sbin/mkfs.ext4
step page sh -e -x /files/page.sh
step no_errors no_errors
