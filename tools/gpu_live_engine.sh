#!/usr/bin/env bash
# What training asks of a live SGLang server, on a machine with a GPU, in about six minutes.
#
#   MODEL=/tmp/qwen SITE=/tmp/site OUT=/tmp/out tools/gpu_live_engine.sh [OPTIONS OF live_engine.py]
#
# MODEL  Hugging Face folder; a server is started on it and ended again
# SITE   folder of SGLang's packages (PYTHONPATH of the server)
# OUT    takes live_engine.jsonl (one object per result) and the logs
# OURS   PYTHONPATH of what our package needs beside src; none: SITE
# PYTHON, PORT  python3 and 30000 where not given; SERVER: another command that starts it
set -u
ulimit -n "$(ulimit -Hn)"  # three connections for each of 256 sessions
cd "$(dirname "$0")/.."
: "${MODEL:?}" "${SITE:?}" "${OUT:?}"
PYTHON=${PYTHON:-python3}
PORT=${PORT:-30000}
mkdir -p "$OUT"
export PYTHONPATH="$PWD/src:${OURS:-$SITE}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
SERVER=${SERVER:-"env PYTHONPATH=$SITE $PYTHON -m sglang.launch_server --model-path $MODEL \
--port $PORT --attention-backend triton --sampling-backend pytorch --grammar-backend none \
--mem-fraction-static 0.4"}

timeout --kill-after=15 "${LIMIT_S:-560}" "$PYTHON" benchmarks/live_engine.py --model "$MODEL" \
  --engine "http://127.0.0.1:$PORT" --launch "$SERVER" --log "$OUT/server.log" "$@" \
  > >(tee -a "$OUT/live_engine.jsonl") 2> >(tee -a "$OUT/live_engine.log" >&2)
code=$?
wait
echo "live_engine.py ended with $code" | tee -a "$OUT/live_engine.log" >&2
exit $code
