#!/usr/bin/env bash
# vision.sh [option...]   an epoch of examples/cifar_MetaFormer.py, a Poolformer, on Fashion-MNIST (of Debian's package, which
# is installed where this is root), else on what images there are. Options go to the program.
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
if [[ ! -d /usr/share/datasets/fashion-mnist && ${XFORMERS_APT:-1} != 0 && $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
  step "images (dataset-fashion-mnist, 31 MB)" apt-get install -y --no-install-recommends dataset-fashion-mnist ||
    say "no package dataset-fashion-mnist: on other images"
fi
scripts/build.sh release OFF xformers python_package
PYTHONPATH=build/release/python OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} exec .venv/bin/python \
  examples/cifar_MetaFormer.py --max_epochs 1 --batch 128 --ref_batch 128 --learning_rate 3e-3 "$@"
