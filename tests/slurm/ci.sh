#!/usr/bin/env bash
# Install SLURM from the system's packages for the tests in tests/cli/test_slurm.py, which start their own controller.
# Says why not and leaves quietly where that is impossible: those tests are then skipped with a reason.
set -uo pipefail
command -v slurmctld slurmd sbatch munged >/dev/null && exit 0
[ "$(id -u)" = 0 ] || { echo "slurm: not root, its tests will be skipped"; exit 0; }
command -v apt-get >/dev/null || { echo "slurm: no apt-get, its tests will be skipped"; exit 0; }
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d made=
# Without it the packages may start daemons of the system.
[ -e "$policy" ] || { made=1; printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; }
install() { timeout 300 apt-get -y -qq --no-install-recommends install slurmctld slurmd slurm-client munge </dev/null >/dev/null 2>&1; }
install || { timeout 120 apt-get -qq update >/dev/null 2>&1; install; } || echo "slurm: cannot be installed, its tests will be skipped"
[ -z "$made" ] || rm -f "$policy"
