#!/bin/sh
# Boots DIRECTORY/disk (image.sh) with this tree on a second disk and runs guest.py in it: run.sh DIRECTORY [CHECK…].
# Emulated, so it takes minutes and wants no rights but those to read the files.  Ends with 0 when all checks held.
set -eu
directory=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
payload=$(mktemp -d "${TMPDIR:-/tmp}/ocibuildd-vm-XXXXXX")
trap 'rm -rf "$payload"' EXIT

# The guest's Python is Debian's: the packages must be for the same version.
"$python" -c 'import sys; assert sys.version_info[:2] == (3, 11), sys.version'
library=$payload/tree/usr/local/lib/python3.11/dist-packages
mkdir -p "$library" "$payload/tree/payload" "$payload/tree/usr/bin"
"$python" -m pip install --quiet --no-warn-script-location --disable-pip-version-check --target "$library" "$here/../.."
cp "$library/bin/ocibuild" "$payload/tree/usr/bin/ocibuild"
printf '#!/usr/bin/python3\nfrom ocibuildd.daemon import main\nmain()\n' >"$payload/tree/usr/bin/ocibuildd"
chmod 755 "$payload/tree/usr/bin/ocibuild" "$payload/tree/usr/bin/ocibuildd"
rm -rf "$library/bin"
cp -r "$here/../../systemd" "$here/guest.py" "$payload/tree/payload/"
printf '%s\n' "$@" >"$payload/tree/payload/wanted"
PYTHONPATH="$here/..:$library" "$python" -c \
    'import sys, sandboxes; sys.stdout.buffer.write(sandboxes.busybox_layer())' >"$payload/tree/payload/busybox.tar"
tar -C "$payload/tree" --owner=0 --group=0 -cf "$payload/payload.tar" .
rm -rf "$payload/tree"

timeout "${VM_TIMEOUT:-2400}" qemu-system-x86_64 \
    -machine "q35,accel=${VM_ACCEL:-tcg}" -cpu max -smp 2 -m 2G -nographic -no-reboot -nic user,model=virtio-net-pci,restrict=on \
    -kernel "$directory/vmlinuz" -initrd "$directory/initrd" \
    -append "root=/dev/vda rw console=ttyS0 loglevel=3 systemd.unified_cgroup_hierarchy=1 mitigations=off" \
    -drive "file=$directory/disk,format=raw,if=virtio,snapshot=on" \
    -drive "file=$payload/payload.tar,format=raw,if=virtio,readonly=on" </dev/null | tee "$directory/log"
grep -q '^all checks held' "$directory/log"
