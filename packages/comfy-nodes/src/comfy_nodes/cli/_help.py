"""What `--help` says of each command: what it answers, and examples that can be typed."""

MAIN = """\
Run one diffusion model across all the memory of a machine: find its blocks,
understand an allocation, plan where each byte lives, predict what that costs,
and stream the rest in just in time.

examples:
  torchspan demo                              the whole way, on a small model
  torchspan explain "cuda:0,6gb;cpu,*"        what an allocation means
  torchspan devices                           what this machine offers
  torchspan plan model.safetensors --spec "cuda:0,6gb;cpu,*"
                                              a real file, nothing loaded
  torchspan gguf info model-Q4_K_S.gguf       what a quantised file consists of
  torchspan pack model.safetensors            bf16 in 70 % of its bytes
  torchspan link --comfyui ~/ComfyUI          ComfyUI loads the node pack
  torchspan doctor --comfyui ~/ComfyUI        what is installed, and what is wrong

exit codes:
  0    all went well
  1    refused or failed: the file, the devices or the budget do not allow it;
       stderr says why, and what would
  2    the command line or the allocation cannot be read
"""

DEMO = """\
Write a small diffusion transformer as safetensors, find its blocks in the
header alone, plan it from an allocation, predict it, run it with part of its
weights behind an emulated slow link, and compare: prediction with measurement,
output with that of the unplaced model. The difference must be 0.0; the exit
code is 1 when it is not. Needs no accelerator.

Then two Ray workers do the same run together, each with half of the tokens and
both with the same copy of the weights. Their latent may differ from that of one
process by rounding (1e-6) and no more, or the exit code is 1.

With --gguf the same model is a GGUF file with quantised matrices, which stay
packed in the file, in the plan and on the way. Two more differences are shown:
to an ordinary model with the dequantised weights, which must be 0.0, too, and
to the original model, which is what the quantisation costs.

examples:
  torchspan demo
  torchspan demo --out pictures --steps 12
  torchspan demo --policy interleave --link 1.5
  torchspan demo --gguf Q4_0
"""

PLAN = """\
Plan where each byte of a model lives, from the header of its file alone: no
weight is read and the devices need not exist. With --device the answer comes
without loading torch, in well under a second.

An allocation says what each device holds; `torchspan explain` says what one
means. Without one, or with "auto", the planner keeps on the compute device what
fits there. A prediction needs the seconds of a pass with all weights resident;
without --compute-seconds the slowdown is given for passes of four lengths.

examples:
  torchspan plan model.safetensors --spec "cuda:0,6gb;cpu,*"
  torchspan plan model.safetensors --compute cuda:0 --virtual-ram-gb 8
  torchspan plan model.safetensors.index.json \\
      --device cuda:0=24gb,22gb --device cpu=64gb --link cpu=25
  torchspan plan model.safetensors --spec "cuda:0,6gb;cpu,*" \\
      --compute-seconds 0.6 --svg placement.svg
  torchspan plan model.safetensors --spec "cuda:0,6gb;cpu,*" --json > plan.json
  torchspan plan model-Q4_K_S.gguf --spec "cuda:0,6gb;cpu,*"
  torchspan plan model.safetensors --spec "cuda:0,auto;cpu,*" \\
      --compute-seconds 0.8 --pack auto
"""

GGUF = """\
Look into GGUF files, the quantised checkpoints of llama.cpp and ComfyUI-GGUF.

examples:
  torchspan gguf info model-Q4_K_S.gguf
  torchspan gguf info model-Q4_K_S.gguf --metadata

What a GGUF file would need on a machine, `torchspan plan` answers as for any
other file; `torchspan demo --gguf` runs a quantised model.
"""

GGUF_INFO = """\
Say what a GGUF file consists of, from its header alone: architecture, how
many weights are kept in which type and what each type costs, the blocks that
a plan would place, and the metadata. No weight is read.

A model in GGUF is mixed: large matrices in few bits, norms and biases whole.
"bits a weight" shows how far a mix really goes, scales included: Q8_0 has 8.5,
Q4_K has 4.5, F16 has 16.

examples:
  torchspan gguf info model-Q4_K_S.gguf
  torchspan gguf info model-Q4_K_S.gguf --metadata
  torchspan gguf info model-Q4_K_S.gguf --metadata --json > info.json
"""

PACK = """\
Write a copy of a safetensors file in which large bf16 tensors are packed
without loss: sign and mantissa are stored whole, the exponent in three bits
where it is one of the seven that most weights have. Trained weights take 70 to
74 % of their bytes. All other tensors and the metadata are copied.

Torchspan reads the result (`load_packed` in Python, `torchspan plan`); other
programs do not. `torchspan unpack` gives the tensors and the metadata back, bit
for bit.

examples:
  torchspan pack model.safetensors
  torchspan pack model.safetensors -o /data/model.w3.safetensors --on cuda:0
"""

UNPACK = """\
Write the tensors and the metadata of a packed file as an ordinary safetensors
file. Each packed tensor is checked against its checksum first.

examples:
  torchspan unpack model.w3.safetensors
  torchspan unpack model.w3.safetensors -o model.safetensors
"""

SP = """\
Plans for sequence parallelism that nobody wrote by hand: derived by trial, and
checked again after an update. Opt-in: for ComfyUI's and diffusers' models there
are plans that were written and reviewed.

examples:
  torchspan sp derive my_model:probe --out my_model.plan.json
  torchspan sp check my_model.plan.json my_model:probe

A probe is a function of yours: probe(step), for the steps 0 to 3, returns the
model in fp32 with the same weights each time, and the arguments of one forward
as a dict. Each stream of tokens (text, image) has another length at every step.
"""

SP_DERIVE = """\
Watch a model at several lengths, propose how its tokens can be cut, try every
proposal on 2 and 3 virtual ranks (threads, no accelerator), and write the first
one that gives what one process gives. Blocks in which a size decides what runs
are refused: another length may take the other way.

The plan holds for what was tried and no more: it is used only where you ask.

examples:
  torchspan sp derive my_model:probe --out my_model.plan.json
  torchspan sp derive my_model:probe --out plan.json --allow-branches
"""

SP_CHECK = """\
Try a plan file with today's model: its class, the arguments of
its blocks, branches on sizes that were not there, and its results on the
virtual ranks. The exit code is 1 when the plan no longer holds.

examples:
  torchspan sp check my_model.plan.json my_model:probe
  torchspan sp check plan.json models.video:tiny
"""

DEVICES = """\
List the devices that torch accepts on this machine, their memory and links,
and say why there are not more: environment, drivers, WSL, peer access.

examples:
  torchspan devices
  torchspan devices --json
"""

EXPLAIN = """\
Say in plain English what an allocation means; with the size of a model and
devices also what it comes to in bytes.

examples:
  torchspan explain "cuda:0,2.5gb;cpu,*"
  torchspan explain "#cuda:0;4;cpu"
  torchspan explain "cuda:0,50%;cuda:1,25%;cpu,*" --model-size 20gb \\
      --device cuda:0=24gb --device cuda:1=12gb --device cpu=64gb
"""

LINK = """\
Let ComfyUI load the node pack that pip installed: one small folder
"torchspan" in its custom_nodes, which imports this package. Updating the
package updates the nodes. Only a folder that this command made is ever
replaced or removed.

examples:
  torchspan link --comfyui ~/ComfyUI
  torchspan link --comfyui ~/ComfyUI --remove
"""

DOCTOR = """\
Say what is installed and in which version, which ComfyUI would load the pack
and what would be in its way, which devices there are and why not more, each
with what would help. The exit code is 1 when there is a problem.

examples:
  torchspan doctor --comfyui ~/ComfyUI
  torchspan doctor --json
"""
