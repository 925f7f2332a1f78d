# What gpu.sh and offload_gpu.sh share; they source it. All that runs ends in under ten minutes, whatever hangs.
#
# PYTHON is one that has torch. The package and what it imports are installed beside it, from WHEELS (build/wheels, which
# `make wheels` fills on a machine with a network), or, where that is not there, built here. Results go to OUTPUT (build/gpu).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels=${WHEELS:-build/wheels}
output=${OUTPUT:-build/gpu}
site=$PWD/build/gpu-site
status=0
SECONDS=0
mkdir -p "$output"

# step NAME SECONDS FILE COMMAND...: at most so long, and no longer than there is time; what it says goes to FILE too.
readonly ALL=570
step() {
    local name=$1 seconds=$2 file=$output/$3
    shift 3
    local left=$((ALL - SECONDS))
    if ((left < seconds)); then seconds=$left; fi
    echo "== $name"
    if ((seconds < 5)); then
        echo "no time is left" | tee "$file"
        status=1
    elif ! timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$file"; then
        echo "$name: failed, or took longer than $seconds s" | tee -a "$file"
        status=1
    fi
}

# install DISTRIBUTION...: the package, and those of the others that this Python has not got.
install() {
    rm -rf "$site"
    if ls "$wheels"/pyendor-*.whl >/dev/null 2>&1; then
        local missing=() wheel name
        for wheel in "$wheels"/*.whl; do
            name=$(basename "$wheel" | cut -d- -f1)
            if [ "$name" = pyendor ] || ! "$python" -m pip show -q "${name//_/-}" >/dev/null 2>&1; then missing+=("$wheel"); fi
        done
        "$python" -m pip install -q --no-index --no-deps --target "$site" "${missing[@]}"
    else
        "$python" -m pip install -q --target "$site" --no-deps .
        "$python" -m pip install -q "$@"
    fi
}
export -f install
export python wheels site

step install 150 install.txt bash -euo pipefail -c 'install "$@"' install "${needed[@]}"
if ((status)); then exit 1; fi

export PYTHONPATH="$site" PYTHONUNBUFFERED=1 PYTHONSAFEPATH= HF_HUB_OFFLINE=1
# -P: the package is the installed one, not the folder of its sources, which has no compiled module.
pytest=("$python" -P -m pytest -p no:cacheprovider -o addopts= -q -m cuda -ra)
