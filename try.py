import sys, os, time, torch, torch.distributed as dist
torch.set_num_threads(1)
from hrm_dist.config import load_config
from hrm_dist.trainer import Trainer
from hrm_dist.distributed import World, StopRequest
rank=int(os.environ.get("RANK",0)); ws=int(os.environ.get("WORLD_SIZE",1))
if ws>1: dist.init_process_group("gloo")
else: dist.init_process_group("gloo",store=dist.HashStore(),rank=0,world_size=1)
cfg=load_config("configs/debug.yaml",sys.argv[1:]+["data_path=/tmp/b/dbg","dataset=null","eval_interval=null","resume=never","ema=true","lr=1e-4","lr_warmup_steps=0"])
t=Trainer(cfg,World(rank,ws,torch.device("cpu")))
out=[]
s=time.time()
for i in range(10):
    t.train_step(t.reader.batch(i)); t.step+=1
    v=t.sums.values.clone()
    if ws>1: dist.all_reduce(v)
    out.append(float(v.sum())); t.sums.values.zero_()
if rank==0: print(cfg.engine,ws,f"{time.time()-s:.1f}s",[f"{x:.7f}" for x in out])
st=t.engine.full_state()
if rank==0: print(sum(v.double().sum().item() for k,v in st.items() if k.startswith("ema")))
