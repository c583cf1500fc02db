#!/usr/bin/env bash
# What only a GPU can show, in one go: tests of the engine on CUDA, tables of the packed step, words per second.
# Needs torch, diffusers, transformers and pytest with pytest-xdist and pytest-timeout, but neither Ray nor MLflow.
#
#     OUT=FOLDER benchmarks/gpu.sh [--tiny] [STAGE ...]
#
# Stages: tests steps sdxl compile words. Without any: tests steps sdxl words. --tiny: models of the tests, to try the
# script itself on any machine. Each command has a limit of time; where one fails, the others still run, and the exit code
# is 1. OUT/gpu.txt has what they said, OUT/gpu.tar.gz the benchmarks' figures as JSON, OUT/words.tar.gz the words that
# were learned of the manifest WORDS.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${OUT:?names the folder for results}"
mkdir -p "$OUT"
figures=$(mktemp -d)
trap 'rm -r "$figures"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore TOKENIZERS_PARALLELISM=false
PYTHON=${PYTHON:-python3}
WORDS=${WORDS:-benchmarks/heldout.parquet}
tiny=no
if [ "${1:-}" = --tiny ]; then tiny=yes; shift; fi
[ $# -gt 0 ] || set -- tests steps sdxl words
failed=0

# limited SECONDS NAME COMMAND...: runs a command with its output in OUT/NAME.txt, and says how it ended. At its limit it is
# interrupted, so that it says how far it got.
limited() {
    local seconds=$1 name=$2 start=$SECONDS code=0
    shift 2
    timeout --signal=INT --kill-after=10 "$seconds" "$@" >"$figures/$name.txt" 2>&1 || code=$?
    [ "$code" -eq 0 ] || failed=1
    echo "== $name: exit code $code after $((SECONDS - start)) s" | tee -a "$OUT/gpu.txt"
    cat "$figures/$name.txt" >>"$OUT/gpu.txt"
    grep -v -E "torchvision|Loading weights|^$" "$figures/$name.txt" | tail -n 24
    tar -C "$figures" --exclude words -czf "$OUT/gpu.tar.gz" .  # now: whoever waits may end this script
}

# step SECONDS NAME OPTION...: a table of the packed step.
step() {
    local seconds=$1 name=$2
    shift 2
    limited "$seconds" "$name" "$PYTHON" benchmarks/step.py "$@" --json "$figures/$name.json"
}

for stage in "$@"; do
    sd15=sd15 sdxl=sdxl largest=32 steps=100 pack=64 processes=8 workers=8 half=bfloat16,float16
    if [ $tiny = yes ]; then sd15=tiny sdxl=tiny-sdxl largest=2 steps=2 pack=4 processes=2 workers=2 half=bfloat16; fi
    case $stage in
    tests)  # -v names each test as it ends: known even where the rest is cut off
        limited 240 tests "$PYTHON" -m pytest -v -p no:cacheprovider -W default -n $workers --dist worksteal \
            --timeout 100 -rs --durations 8 tests/inversion/test_on_a_gpu.py
        ;;
    steps)
        step 70 sd15-half --model $sd15 --dtypes $half --max-pack $largest \
            --seconds 0.5 --repeats 2 --limit 35
        step 70 sd15-channels-last --model $sd15 --dtypes bfloat16 --max-pack $largest --channels-last on \
            --seconds 0.5 --repeats 2 --limit 30
        step 70 sd15-single --model $sd15 --dtypes float32,tf32 --max-pack 4 --seconds 0.5 --repeats 2 --limit 30
        ;;
    sdxl)
        step 90 sdxl-half --model $sdxl --dtypes $half --batch-size 1 --max-pack $largest \
            --seconds 0.5 --repeats 2 --limit 40
        step 90 sdxl-checkpointing --model $sdxl --dtypes bfloat16 --batch-size 1 --max-pack $largest \
            --checkpointing on --seconds 0.5 --repeats 2 --limit 40
        ;;
    compile)
        step 150 sd15-compile --model $sd15 --dtypes bfloat16 --compile off,on --min-pack 8 --max-pack 8 \
            --seconds 1 --repeats 2
        ;;
    words)
        limited 150 words "$PYTHON" benchmarks/catalogue_words.py "$WORDS" "$figures/words" --steps $steps \
            --pack $pack --processes $processes --seconds 90 --json "$figures/words.json"
        tar -C "$figures" -czf "$OUT/words.tar.gz" words
        ;;
    *)
        echo "no stage $stage: tests steps sdxl compile words"
        failed=1
        ;;
    esac
done
exit $failed
