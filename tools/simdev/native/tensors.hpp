// What makes a device tensor, or changes what it stands for, without running a kernel.
#pragma once

#include "copies.hpp"

namespace simdev {

inline Device checked_device(std::optional<Device> device, std::optional<bool> pin_memory) {
  TORCH_CHECK(!c10::pinned_memory_or_default(pin_memory),
              "simdev: pinned memory is host memory; ask for it with device='cpu'");
  const auto d = c10::device_or_default(device);
  return torch_device(d.has_index() ? d.index() : current_device);
}

constexpr auto kKeys = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);

inline Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                    std::optional<Device> device, std::optional<bool> pin_memory,
                    std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(checked_device(device, pin_memory));
  return at::detail::empty_generic(size, &immortal<DeviceAllocator>(), kKeys, c10::dtype_or_default(type), format);
}

inline Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> type,
                            std::optional<at::Layout>, std::optional<Device> device, std::optional<bool> pin_memory) {
  const c10::DeviceGuard guard(checked_device(device, pin_memory));
  return at::detail::empty_strided_generic(size, stride, &immortal<DeviceAllocator>(), kKeys,
                                           c10::dtype_or_default(type));
}

// torch's resize_ writes into the storage at once, as if it were the CPU's; the hook keeps to the order of streams.
inline const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  if (format) tensor->empty_tensor_restride(*format);
  const size_t needed =
      at::detail::computeStorageNbytesContiguous(self.sizes(), self.element_size(), self.storage_offset());
  if (needed > self.storage().nbytes()) immortal<Hooks>().resizePrivateUse1Bytes(self.storage(), needed);
  return self;
}

inline Tensor& set_tensor(Tensor& self, const Tensor& source) { return at::native::set_tensor_(self, source); }
inline Tensor& set_storage(Tensor& self, at::Storage source) { return at::native::set_(self, source); }
inline Tensor& set_storage_with_layout(Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size,
                                       c10::SymIntArrayRef stride) {
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size), strides = C10_AS_INTARRAYREF_SLOW(stride);
  const auto contiguous = c10::contiguous_strides(sizes);
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(
      sizes, strides.size() == sizes.size() ? strides : c10::IntArrayRef(contiguous),
      offset.guard_int(__FILE__, __LINE__));
  return self;
}

inline void record_stream(Tensor& self, c10::Stream s) {
  immortal<DeviceAllocator>().recordStream(self.storage().data_ptr(), s);
}

}  // namespace simdev
