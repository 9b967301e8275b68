"""What simulated machines must choose, typed by hand from the tables in `docs/memory.md`; never from the planner.

A line is a machine, a wish, and a cell for each of the four clips of CLIPS. A cell is the transformer's precision
and placement:

    b bf16    f fp8_compute    i int8    s fp8_storage    c float32    ? any
    R it and the text encoder resident    E it resident, the text encoder staged    T staged
    W whole on the card: resident or staged    S streamed    * any        X refused        - not checked
"""

CLIPS = (
    ("720x720_5s", (704, 704)),
    ("960x960_5s", (960, 960)),
    ("960x960_10s", (960, 960)),
    ("960x960_10s", (704, 1280)),
)

TABLE = """
# 80 GB and more: everything resident in bf16
1x192GB@10.0,ram=512            auto      bR bR bR bR
1x141GB@9.0,ram=256             auto      bR bR bR bR
1x80GB@9.0,ram=64               auto      bR bR bR bR
1x80GB@8.0,ram=64               auto      bR bR bR bR
1x80GB@9.0,ram=64               exact     bR bR bR bR
2x80GB@9.0,ram=512,free=70      auto      bR bR bR bR
# 34.8 GB of weights and 10 GB of decode are a hair more than 48 GB give (44.7), so at 960x960 the text encoder
# leaves, for 5 s as for 10
1x48GB@8.9,ram=64               auto      bR bE bE bE
1x48GB@8.6,ram=64               auto      bR bE bE bE
1x48GB@8.9,ram=64               exact     bR bE bE bE
1x48GB@8.9,ram=64,free=45       auto      bR bE bE bE
1x40GB@8.0,ram=64               auto      bE bE bE bE
1x40GB@8.0,ram=64               exact     bE bE bE bE
# 32 GB: bf16, taking turns
1x32GB@12.0,ram=64              auto      bT bT bT bT
1x32GB@8.6,ram=64               auto      bT bT bT bT
1x32GB@12.0,ram=64              exact     bT bT bT bT
1x32GB@12.0,ram=32              auto      bT bT bT bT
1x32GB@12.0,ram=16              auto      bT bT bT bT
1x48GB@8.9,ram=64,free=32       auto      bT bT bT bT
# 24 GB: fp8 from compute capability 8.9, else int8, taking turns
1x24GB@8.9,ram=64               auto      fW fW fW fW
1x24GB@9.0,ram=64               auto      fW fW fW fW
1x24GB@12.0,ram=64              auto      fW fW fW fW
1x24GB@8.6,ram=64               auto      iW iW iW iW
1x24GB@8.0,ram=64               auto      iW iW iW iW
1x24GB@7.5,ram=64               auto      iW iW iW iW
1x24GB@8.9,ram=32               auto      fW fW fW fW
1x24GB@8.9,ram=16               auto      fW fW fW fW
1x24GB@8.9,ram=8                auto      fW fW fW fW
1x24GB@8.9,ram=64,disk=hdd      auto      fW fW fW fW
2x24GB@8.9,ram=64               auto      fW fW fW fW
1x24GB@8.9,ram=64,free=20       auto      fW fW fW fW
# without packages: fp8 needs torchao and triton, int8 torchao, casting nothing
1x24GB@8.9,ram=64,kernels=none            auto      sW sW sW sW
1x24GB@8.6,ram=64,kernels=none            auto      sW sW sW sW
1x24GB@8.9,ram=64,kernels=torchao         auto      iW iW iW iW
1x16GB@8.9,ram=64,kernels=none            auto      sW sW sS sS
1x8GB@8.6,ram=64,kernels=none             auto      sS sS sS sS
# exact at 24 GB and less: bf16, streamed
1x24GB@8.9,ram=64               exact     bS bS bS bS
1x24GB@8.6,ram=64               exact     bS bS bS bS
1x24GB@8.9,ram=16               exact     bS bS bS bS
1x16GB@8.9,ram=64               exact     bS bS bS bS
1x12GB@8.9,ram=64               exact     bS bS bS bS
1x8GB@8.9,ram=64                exact     bS bS bS bS
# 6 GB give 5.17. At 960x960, 10 s a tensor of one pass is 0.314 GB, of which a block holds 11 (3.46), beside two
# blocks of bf16 (1.36) and 0.32 of latents, tables and text: 5.14. Half of the tokens at 5 s fit the 4.23 of 5 GB
1x6GB@8.9,ram=64                exact     bS bS bS bS
1x5GB@8.9,ram=64                exact     bS bS X  X
# 16 GB: 8-bit on the card as a whole, but streamed where 10 s at 960x960 need 4 GB of activations beside 11.5
1x16GB@8.9,ram=64               auto      fW fW fS fS
1x16GB@12.0,ram=64              auto      fW fW fS fS
1x16GB@8.6,ram=64               auto      iW iW iS iS
1x16GB@8.9,ram=16               auto      fW fW fS fS
1x24GB@8.9,ram=64,free=16       auto      fW fW fS fS
# 12, 8 and 6 GB: streamed
1x12GB@8.9,ram=64               auto      fS fS fS fS
1x12GB@12.0,ram=32              auto      fS fS fS fS
1x12GB@8.6,ram=64               auto      iS iS iS iS
1x11GB@7.5,ram=32               auto      iS iS iS iS
1x10GB@8.6,ram=32               auto      iS iS iS iS
1x8GB@8.9,ram=64                auto      fS fS fS fS
1x8GB@8.9,ram=16                auto      fS fS fS fS
1x8GB@8.6,ram=32                auto      iS iS iS iS
1x6GB@8.9,ram=64                auto      fS fS fS fS
1x6GB@8.6,ram=16                auto      iS iS iS iS
# below: a small clip may still go; 3 GB hold no two layers beside the table of word embeddings
1x3GB@8.9,ram=64                auto      X  X  X  X
1x24GB@8.9,ram=64,free=3        auto      X  X  X  X
# fast: fp8 wherever it can be computed, on long clips at any rate; bf16 beats unpacked int8
1x48GB@8.9,ram=64               fast      fR fR fR fR
1x24GB@8.9,ram=64               fast      fW fW fW fW
1x16GB@8.9,ram=64               fast      fW fS fS fS
1x8GB@8.9,ram=64                fast      fS fS fS fS
# smallest: streamed, however large the card
1x80GB@9.0,ram=64               smallest  ?S ?S ?S ?S
1x24GB@8.9,ram=64               smallest  ?S ?S ?S ?S
1x24GB@8.6,ram=64               smallest  ?S ?S ?S ?S
1x6GB@8.9,ram=64                smallest  ?S ?S ?S ?S
# no card, a card that torch is not built for, or no memory for the process itself
cpu,ram=16                      auto      X  X  X  X
cpu,ram=512,cores=64            fast      X  X  X  X
1x11GB@6.1,ram=64               auto      X  X  X  X
1x32GB@7.0,ram=64               auto      X  X  X  X
1x24GB@8.9,ram=4                auto      X  X  X  X
1x80GB@9.0,ram=64,ramfree=3     auto      X  X  X  X
"""

# Machine, wish → precision and device of `nano`, which runs everywhere.
NANO = """
cpu,ram=16                      auto      float32   cpu
cpu,ram=4,cores=2               auto      float32   cpu
cpu,ram=16                      exact     float32   cpu
cpu,ram=16                      fast      float32   cpu
cpu,ram=16                      smallest  float32   cpu
1x11GB@6.1,ram=16               auto      float32   cpu
1x24GB@8.9,ram=3                auto      float32   cpu
1x80GB@9.0,ram=64               auto      bf16      cuda:0
1x24GB@8.9,ram=64               auto      bf16      cuda:0
1x24GB@8.9,ram=64               exact     bf16      cuda:0
1x6GB@8.6,ram=16                auto      bf16      cuda:0
"""
