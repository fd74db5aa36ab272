// Simulated accelerators for torch, hosted on the CPU: the one translation unit, and the registration with torch.
//
// Device memory is host memory with an account of its own for each device. Operators are the CPU's, run on aliases of
// that memory after the device check that CUDA would make. Copies wait in the queue of their stream until something
// that streams and events order after them needs them. Every access is checked against vector clocks.
//
// The files below are read best in this order; each builds on the ones before it.
#include "common.hpp"       // settings, limits, the lock
#include "clocks.hpp"       // vector clocks: what happened before what
#include "streams.hpp"      // streams, and work that waits in their queues
#include "races.hpp"        // who touched which bytes, and whether that was ordered
#include "memory.hpp"       // blocks of device and pinned memory, capacities
#include "allocators.hpp"   // the same as torch's allocators
#include "guard.hpp"        // the same as torch's devices, streams and events
#include "hooks.hpp"        // random generators, pinned memory, resizing: torch's hooks
#include "aliases.hpp"      // device tensors seen as CPU tensors, and CPU results taken over
#include "kernels.hpp"      // operators: checked, then run by the CPU
#include "copies.hpp"       // copies between host and devices
#include "tensors.hpp"      // what makes or changes a tensor without running a kernel
#include "c_interface.hpp"  // what Python calls

namespace simdev {

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("resize_", resize_);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage_with_layout);
  m.impl("record_stream", record_stream);
  m.impl("_copy_from", copy_from);
  m.impl("convolution_overrideable", convolution);
  // torch decomposes these for a backend that does not list them, and the parts round otherwise than the CPU's kernel.
  for (const char* name : {"native_layer_norm", "native_group_norm", "silu_backward", "mish_backward"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

// A copy conjugates and negates by itself. torch's fallbacks would make a copy first, by this very operator, for ever.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }

// Loading the library is what makes the backend known; the number of devices follows with simdev_start.
static const bool registered = [] {
  c10::SetAllocator(kDeviceType, &immortal<DeviceAllocator>());
  at::setHostAllocator(kDeviceType, &immortal<PinnedAllocator>());
  at::RegisterPrivateUse1HooksInterface(&immortal<Hooks>());
  return true;
}();

}  // namespace simdev

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(PrivateUse1, simdev::Guard)
}

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &simdev::choose_attention)
}
