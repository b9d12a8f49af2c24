# usage: go.sh first|rest   (OUT set)
export PYTHONUNBUFFERED=1
W=/root/tiny; mkdir -p $W
T0=$(date +%s)
cd "$(dirname "$0")"
cp train.py $W/
if [ "$1" = first ]; then
  nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
  mkdir -p $W/tokens; for p in training validation; do xz -T0 -dc $p.u16.xz > $W/tokens/$p.u16 || python3 -c "
import lzma,shutil;shutil.copyfileobj(lzma.open('$p.u16.xz'),open('$W/tokens/$p.u16','wb'))"; done
  ls -l $W/tokens; echo "unpacked $(( $(date +%s)-T0 ))s"
  cd $W
  run() { n=$1; shift; echo "== $n $*"; timeout 110 python3 train.py tokens out_$n "$@" --warmup 60 --every 35 2>&1 | tail -4; cp out_$n/history.json $OUT/ablate_$n.json; echo "at $(( $(date +%s)-T0 ))s"; }
  run A --steps 350 --peak 4e-3
  run B --steps 350 --peak 8e-3
  run C --steps 350 --peak 6e-3 --num-hidden-layers 6 --intermediate-size 1024
  run D --steps 700 --peak 4e-3 --batch 256 --every 70
  python3 - <<'P' > best.txt
import json
r={}
for n,o in dict(A='--peak 4e-3',B='--peak 8e-3',C='--peak 6e-3 --num-hidden-layers 6 --intermediate-size 1024',D='--peak 4e-3 --batch 256').items():
    try: r[json.load(open(f'out_{n}/history.json'))['best'][1]]=o
    except Exception as e: pass
print(r[min(r)])
P
  echo "BEST $(cat best.txt)"
fi
cd $W
LEFT=$(( $2 - ($(date +%s)-T0) ))
python3 train.py tokens main $(cat best.txt) --minutes $3 --resume --stop-after $LEFT --warmup 300 --every 25
cp main/model.safetensors main/history.json $OUT/
echo "total $(( $(date +%s)-T0 ))s"
