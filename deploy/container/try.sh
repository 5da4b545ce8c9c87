#!/bin/sh
# Build the image without a daemon, and go through the demo in it, as its user: `make image`.
#
# Needs root, buildah, 30 GB of disk and ten minutes. Where no registry is reached, the base is made
# of Debian's packages (debootstrap). Arguments go to `buildah build`, such as
# `--volume /etc/pip.conf:/etc/pip.conf:ro` on machines that say there where packages come from.
set -eu
cd "$(dirname "$0")/../.."
base=python:$(sed -n 's/^ARG PYTHON=//p' deploy/container/Dockerfile)

base_of_debian() {
    folder=$(mktemp -d)
    # shellcheck disable=SC2016 # $(…) is for apt-get
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$folder" "$mirror"
    ln -s python3 "$folder/usr/bin/python"
    made=$(buildah from scratch)
    buildah add --quiet "$made" "$folder" /
    buildah commit --quiet --rm "$made" "$base"
    rm -rf "$folder"
}

buildah inspect --type image "$base" > /dev/null 2>&1 || buildah pull "$base" || base_of_debian
buildah build --format docker --isolation chroot --network host --pull=never "$@" \
    --file deploy/container/Dockerfile --tag distill .
tried=$(buildah from --pull=never localhost/distill)
trap 'buildah rm "$tried" > /dev/null' EXIT
buildah run --isolation chroot "$tried" -- sh -eu << 'END'
test "$(id -u)" = 10001
distill --version
distill demo --out /data/demo < /dev/null
distill store verify /data/demo/store.zarr
for each in ray torchrun gcc wget; do command -v $each; done
! touch /opt/distill/x 2> /dev/null
END
