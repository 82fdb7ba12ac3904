# Boots systemd as process 1 of namespaces of its own, over this machine's files. Usage: boot.sh FOLDER [COMMAND...]
#
# LOWER is another root to lie over, NETWORK the file of a network namespace that is there, NAME the host name.
# FOLDER/upper takes all writes and outlives a boot. With a COMMAND that runs in the same root instead,
# with this machine's network: the preparation. Called inside a mount namespace of its own.
set -eu
folder=$1
shift
root=$folder/root
mkdir -p "$root" "$folder/upper" "$folder/work"

if [ "${STAGE:-1}" = 1 ] && [ $# -eq 0 ]; then
    mkdir -p "$folder/cgroup"
    mount -t cgroup2 none "$folder/cgroup"
    mkdir -p "$folder/cgroup/$GROUP"
    echo $$ >"$folder/cgroup/$GROUP/cgroup.procs"
    if [ -n "${NETWORK:-}" ]; then
        set -- nsenter --net="$NETWORK" unshare
    else
        set -- unshare --net
    fi
    STAGE=2 exec "$@" --mount --cgroup --pid --uts --ipc --fork --kill-child sh "$0" "$folder"
fi

mount -t overlay overlay -o "lowerdir=${LOWER:-/},upperdir=$folder/upper,workdir=$folder/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"

if [ $# -gt 0 ]; then
    exec chroot "$root" "$@"
fi
mount -t cgroup2 none "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
hostname "${NAME:-qanat-test}"
exec env -i container=qanat-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    chroot "$root" /usr/lib/systemd/systemd --system --unit=multi-user.target --log-target=null --show-status=0
