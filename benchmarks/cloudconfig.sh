#!/bin/sh
# What benchmarks/cloudconfig.yaml says, by hand: the least that a first boot needs for it, with no
# check of anything. At a later boot it is run with "again" and only does what each boot needs.
set -eu
umask 022
key='ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILDahGtdFJlYEzohhA1cWaZ6YSVYwVL8+x6gkGgpx0E4 bench@example'
hers='ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA875uXqdM+k04hwSn3K7F9bf+vcOYsDoFN6+oD7XMbP alice@example'
hash='$6$benchbench$J6EDhHGOIREAczfQzBoAqT6NPEJLzS0x3W3SD/QuPH5mz2PsdDUgPU6pAvkWWBbItk7kCQFh7t5gA6EV/5TDL0'

# bootcmd
mkdir -p /var/lib/bench
sh -c 'echo at each boot >> /var/lib/bench/bootcmd'
if [ "${1-}" = again ]; then
    echo "the benchmark's document is applied"
    exit
fi

hostname bench-1
echo bench-1 > /etc/hostname
printf '%s\n' '127.0.1.1 bench-1.example.net bench-1' '127.0.0.1 localhost' \
    '::1 localhost ip6-localhost ip6-loopback' > /etc/hosts
ln -sf /usr/share/zoneinfo/Europe/Berlin /etc/localtime
echo Europe/Berlin > /etc/timezone
echo LANG=C.UTF-8 > /etc/default/locale

groupadd operators
groupadd web
gpasswd -a core web > /dev/null
useradd -m -c 'Alice of the benchmark' -u 2001 -d /home/alice-of-bench -s /bin/sh -g operators \
    -G web,adm -p "$hash" -e 2040-12-31 -f 30 alice
useradd -r -M -N collector
echo "core:$hash" | chpasswd -e
echo 'alice ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/90-bench
chmod 440 /etc/sudoers.d/90-bench
authorize() { # user group home key
    [ -d "$3" ] || install -d -m 700 -o "$1" -g "$2" "$3"
    install -d -m 700 -o "$1" -g "$2" "$3/.ssh"
    echo "$4" > "$3/.ssh/authorized_keys"
    chmod 600 "$3/.ssh/authorized_keys"
    chown "$1:$2" "$3/.ssh/authorized_keys"
}
authorize core core /home/core "$key"
authorize alice operators /home/alice-of-bench "$hers"
echo 'PasswordAuthentication no' > /etc/ssh/sshd_config.d/10-bench.conf
systemctl try-restart ssh

mkdir -p /etc/bench /opt/bench
printf '%s\n' 'greeting = hello' 'target = world' '# appended' > /etc/bench/plain.conf
chown root:adm /etc/bench/plain.conf
chmod 640 /etc/bench/plain.conf
echo dGV4dCBiZWhpbmQgYmFzZTY0Cg== | base64 -d > /etc/bench/based
chmod 600 /etc/bench/based
echo H4sIAAAAAAACA0vOzy0oSi0uTk1RKEmtKFHIT1NIVEhKzUvOyE0syuYCAN293Y4fAAAA |
    base64 -d | gzip -d > /etc/bench/packed
printf '%s\n' '#!/bin/sh' 'echo run' > /opt/bench/run
chmod 755 /opt/bench/run
echo 'written when alice is there' > /home/alice-of-bench/note
chown alice:operators /home/alice-of-bench/note
chmod 600 /home/alice-of-bench/note

echo 'tmpfs /srv/scratch tmpfs size=1M,mode=0750 0 0' >> /etc/fstab
mkdir -p /srv/scratch
mount /srv/scratch
systemctl daemon-reload

mkdir -p /etc/systemd/timesyncd.conf.d
printf '%s\n' '[Time]' 'NTP=ntp1.example.net ntp2.example.net pool.example.net' \
    > /etc/systemd/timesyncd.conf.d/bench.conf
systemctl try-restart systemd-timesyncd

[ "${without_ca_certs-}" ] || {
    cat > /usr/local/share/ca-certificates/bench.crt << 'PEM'
-----BEGIN CERTIFICATE-----
MIIBfDCCASKgAwIBAgIBATAKBggqhkjOPQQDAjAcMRowGAYDVQQDDBFQcm9hIGJl
bmNobWFyayBDQTAgFw0yNjExMjQxMjA1NTNaGA8yMTI2MTAzMTEyMDU1M1owHDEa
MBgGA1UEAwwRUHJvYSBiZW5jaG1hcmsgQ0EwWTATBgcqhkjOPQIBBggqhkjOPQMB
BwNCAATC/GC70HnIMkrKvlmEo5hTh92tKiU30UkeqRvTy5+QM2Qum0ciDdI0MT2b
wGulHjR75Q2IDRTpg8PBxcOP0+iMo1MwUTAdBgNVHQ4EFgQUqWOGzY7O5FKs1Asm
0nh1R7gw8wYwHwYDVR0jBBgwFoAUqWOGzY7O5FKs1Asm0nh1R7gw8wYwDwYDVR0T
AQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiAmCSY5jsicJ4GON/Ja1rHwWJis
v96VrBv5R3dvsiKM0QIhAJQLyJEvYjD01x0qJv6B7VujpyNeft7PCDuURRdqjDKa
-----END CERTIFICATE-----
PEM
    update-ca-certificates > /dev/null 2>&1
}

# runcmd
echo once > /var/lib/bench/runcmd
touch '/var/lib/bench/a word with blanks'
echo "the benchmark's document is applied"
