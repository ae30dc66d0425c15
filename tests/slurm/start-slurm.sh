#!/usr/bin/env bash
# Starts a one-node Slurm on this host for tests (Debian, root): partitions cpu and gpu, one GPU resource bound to
# /dev/null, no accounting. Usage: start-slurm.sh [STATE_DIR]
set -euo pipefail
state=${1:-/tmp/popatlas-slurm}
host=$(hostname -s)
# one more than there are, for a run that itself is a job: it waits most of the time
cpus=$(($(env -u OMP_NUM_THREADS nproc) + 1))
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)

if ! command -v slurmctld >/dev/null; then
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurm-wlm munge
fi
mkdir -p "$state"/{spool,state} /run/munge /etc/slurm
chown munge: /run/munge
cat >/etc/slurm/slurm.conf <<CONF
ClusterName=test
SlurmctldHost=$host
SlurmUser=root
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
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
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=$host CPUs=$cpus RealMemory=$memory Gres=gpu:1 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP
CONF
echo "NodeName=$host Name=gpu File=/dev/null" >/etc/slurm/gres.conf
# daemons must not hold this script's output open
pgrep -x munged >/dev/null || service munge start >/dev/null 2>&1
pgrep -x slurmctld >/dev/null || slurmctld >/dev/null 2>&1 </dev/null
pgrep -x slurmd >/dev/null || slurmd >/dev/null 2>&1 </dev/null
for _ in $(seq 40); do
  sinfo -h -o %T 2>/dev/null | grep -q idle && break
  sleep 0.5
done
sinfo
