#!/bin/sh
# A Debian with systemd, its kernel and what ocibuildd wants of a host, as a disk: DIRECTORY/{disk,vmlinuz,initrd}.
# It is made once; what is to be tested comes on a second disk (run.sh).  Wants root, mmdebstrap, mke2fs.
set -eu
directory=$1
tree=$directory/tree

mkdir -p "$directory"
rm -rf "$tree"
mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
    --include=linux-image-cloud-amd64,systemd,systemd-sysv,udev,dbus,dbus-user-session,libpam-systemd \
    --include=python3,uidmap,passt,busybox-static,ca-certificates,procps,kmod \
    bookworm "$tree"

cat >"$tree/etc/systemd/system/payload.service" <<'UNIT'
[Unit]
Description=the tests on the second disk
After=systemd-user-sessions.service network.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'tar -C / -xf /dev/vdb && exec python3 -u /payload/guest.py'
ExecStopPost=/bin/systemctl poweroff --no-block
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
UNIT
mkdir -p "$tree/etc/systemd/system/multi-user.target.wants"
ln -s ../payload.service "$tree/etc/systemd/system/multi-user.target.wants/payload.service"
ln -sf /dev/null "$tree/etc/systemd/system/serial-getty@ttyS0.service"
ln -sf /lib/systemd/system/multi-user.target "$tree/etc/systemd/system/default.target"
printf '[Match]\nType=ether\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n' >"$tree/etc/systemd/network/dhcp.network"
ln -s /lib/systemd/system/systemd-networkd.service "$tree/etc/systemd/system/multi-user.target.wants/"
echo '/dev/vda / ext4 defaults 0 1' >"$tree/etc/fstab"
echo vm >"$tree/etc/hostname"

cp "$tree"/boot/vmlinuz-* "$directory/vmlinuz"
cp "$tree"/boot/initrd.img-* "$directory/initrd"
rm -f "$directory/disk"
mke2fs -q -t ext4 -d "$tree" "$directory/disk" 3G
rm -rf "$tree"
