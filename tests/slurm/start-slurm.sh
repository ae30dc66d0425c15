#!/usr/bin/env bash
# Starts a one-node Slurm on this host for tests (Debian, root): partitions cpu and gpu, one GPU resource bound to
# /dev/null. Usage: start-slurm.sh [--full] [STATE_DIR]
# --full: as on a cluster, with accounting (slurmdbd and MariaDB), memory limits that the kernel keeps (cgroups), a scratch
# disk for each job, and a partition `urgent` whose jobs preempt the others.
set -euo pipefail
full=
if [ "${1:-}" = --full ]; then full=yes; shift; fi
state=${1:-/tmp/popatlas-slurm}
host=$(hostname -s)
# one more than there are, for a run that itself is a job: it waits most of the time
cpus=$(($(env -u OMP_NUM_THREADS nproc) + 1))
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
port=33061 # of MariaDB, on this host alone

need=()
command -v slurmctld >/dev/null || need+=(slurm-wlm munge)
if [ "$full" ]; then
  command -v slurmdbd >/dev/null || need+=(slurmdbd)
  command -v mariadbd >/dev/null || need+=(mariadb-server)
fi
if [ ${#need[@]} -gt 0 ]; then
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${need[@]}"
fi
mkdir -p "$state"/{spool,state} /run/munge /etc/slurm
chown munge: /run/munge
# daemons must not hold this script's output open
pgrep -x munged >/dev/null || service munge start >/dev/null 2>&1

keep_books() { # a MariaDB of its own, and slurmdbd
  local root=(mariadb --socket "$state/mysql.sock")
  if ! pgrep -x mariadbd >/dev/null; then
    [ -d "$state/mysql/mysql" ] || mariadb-install-db --user=root --datadir="$state/mysql" --skip-test-db >/dev/null
    mariadbd --no-defaults --user=root --datadir="$state/mysql" --socket="$state/mysql.sock" --bind-address=127.0.0.1 \
      --port=$port --pid-file="$state/mysql.pid" --innodb-buffer-pool-size=128M >"$state/mysql.log" 2>&1 </dev/null &
    for _ in $(seq 60); do "${root[@]}" -e 'SELECT 1' >/dev/null 2>&1 && break; sleep 0.5; done
  fi
  "${root[@]}" -e "CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm'; CREATE USER IF NOT EXISTS
    slurm@localhost IDENTIFIED BY 'slurm'; GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1', slurm@localhost"
  cat >/etc/slurm/slurmdbd.conf <<CONF
DbdHost=localhost
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$port
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
PidFile=$state/slurmdbd.pid
LogFile=$state/slurmdbd.log
CONF
  chmod 600 /etc/slurm/slurmdbd.conf
  pgrep -x slurmdbd >/dev/null || slurmdbd >/dev/null 2>&1 </dev/null
  for _ in $(seq 60); do sacctmgr -i show cluster >/dev/null 2>&1 && break; sleep 0.5; done
  sacctmgr -i add cluster test >/dev/null || true # they may be there
  sacctmgr -i add account tests >/dev/null || true
  sacctmgr -i add user root account=tests >/dev/null || true
}

cat >/etc/slurm/slurm.conf <<CONF
ClusterName=test
SlurmctldHost=$host
SlurmUser=root
MpiDefault=none
ProctrackType=proctrack/linuxproc
ReturnToService=2
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmdSpoolDir=$state/spool
StateSaveLocation=$state/state
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
# a job that is requeued waits until its old credential is void, 120 s by default
AuthInfo=cred_expire=10
NodeName=$host CPUs=$cpus RealMemory=$memory Gres=gpu:1 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP
CONF
if [ "$full" ]; then
  cat >>/etc/slurm/slurm.conf <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
TaskPlugin=task/cgroup
TaskProlog=$state/task-prolog
Epilog=$state/epilog
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
CONF
  cat >/etc/slurm/cgroup.conf <<CONF
CgroupAutomount=no
ConstrainRAMSpace=yes
ConstrainSwapSpace=no
CONF
  # a scratch disk for each job, as many sites have
  scratch="$state/scratch-of-job-"
  printf '#!/bin/sh\nmkdir -p %s$SLURM_JOB_ID\necho export SLURM_TMPDIR=%s$SLURM_JOB_ID\n' "$scratch" "$scratch" >"$state/task-prolog"
  printf '#!/bin/sh\nrm -rf %s$SLURM_JOB_ID\n' "$scratch" >"$state/epilog"
  chmod +x "$state/task-prolog" "$state/epilog"
  keep_books
else
  cat >>/etc/slurm/slurm.conf <<CONF
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
TaskPlugin=task/none
CONF
fi
echo "NodeName=$host Name=gpu File=/dev/null" >/etc/slurm/gres.conf
pgrep -x slurmctld >/dev/null || slurmctld >/dev/null 2>&1 </dev/null
pgrep -x slurmd >/dev/null || slurmd >/dev/null 2>&1 </dev/null
for _ in $(seq 40); do
  sinfo -h -o %T 2>/dev/null | grep -q idle && break
  sleep 0.5
done
sinfo
