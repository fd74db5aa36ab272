// Device tensors seen as CPU tensors over the same bytes, and CPU results taken over as device tensors.
#pragma once

#include "hooks.hpp"

namespace simdev {

// The aliases of one operator's arguments. Tensors that share a storage get aliases that share one, so that a result
// which is a view of an argument is recognised and becomes a view of the device tensor.
class Aliases {
 public:
  // With `dry` an alias has the shape only (a meta tensor), and so has what the operator makes of it.
  explicit Aliases(bool dry) : dry_(dry) {}

  Tensor to_host(const Tensor& t) {
    if (!t.defined()) return t;
    if (!t.is_privateuseone() && !dry_) return t;
    const auto key = dry_ ? c10::DispatchKey::Meta : c10::DispatchKey::CPU;
    Tensor alias = at::detail::make_tensor<c10::TensorImpl>(host_storage(t), c10::DispatchKeySet(key), t.dtype());
    copy_layout(t, alias);
    if (t.is_privateuseone()) originals_.emplace_back(alias, t);
    return alias;
  }

  Tensor to_device(const Tensor& result, int device, const Operation& op) {
    if (!result.defined()) return result;
    for (const auto& [alias, original] : originals_) {
      if (alias.is_same(result)) return original;
      if (!alias.storage().is_alias_of(result.storage())) continue;
      // With the keys of what it is a view of, or it would be no view to autograd and to inference mode.
      Tensor view = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(original.storage()),
                                                             original.key_set(), result.dtype());
      copy_layout(result, view);
      return view;
    }
    Tensor t =
        at::detail::make_tensor<c10::TensorImpl>(device_storage(result.storage(), device, op),
                                                 c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), result.dtype());
    copy_layout(result, t);
    return t;
  }

  // An operator may have resized an argument that it writes (out=): then the device tensor follows.
  static void follow(const Tensor& alias, const Tensor& original) {
    const auto* from = alias.storage().unsafeGetStorageImpl();
    auto* to = original.storage().unsafeGetStorageImpl();
    if (from->nbytes() != to->nbytes() || (alias.is_cpu() && from->data() != to->data())) {
      immortal<Hooks>().resizePrivateUse1Bytes(original.storage(), from->nbytes());
      if (alias.is_cpu() && from->nbytes()) std::memcpy(to->mutable_data(), from->data(), from->nbytes());
    }
    if (alias.sizes() != original.sizes() || alias.strides() != original.strides() ||
        alias.storage_offset() != original.storage_offset())
      original.unsafeGetTensorImpl()->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
  }

 private:
  static void copy_layout(const Tensor& from, const Tensor& to) {
    to.unsafeGetTensorImpl()->set_sizes_and_strides(from.sizes(), from.strides(), from.storage_offset());
    to._set_conj(from.is_conj());
    to._set_neg(from.is_neg());
  }

  c10::Storage host_storage(const Tensor& t) {
    for (const auto& [host, device] : storages_)
      if (device.is_alias_of(t.storage())) return host;
    const auto where = c10::Device(dry_ ? c10::kMeta : c10::kCPU);
    // Owns nothing: the argument outlives the operator.
    c10::DataPtr data(dry_ ? nullptr : t.storage().unsafeGetStorageImpl()->mutable_data(), where);
    c10::Storage host(c10::Storage::use_byte_size_t{}, t.storage().nbytes(), std::move(data),
                      c10::GetAllocator(where.type()), true);
    if (t.is_privateuseone()) storages_.emplace_back(host, t.storage());
    return host;
  }

  // Results may share a storage that is new, too.
  c10::Storage device_storage(const c10::Storage& result, int device, const Operation& op) {
    for (const auto& [host, known] : storages_)
      if (host.is_alias_of(result)) return known;
    c10::DataPtr data = dry_ ? allocate(device, result.nbytes()) : adopt(device, result, op);
    if (Block* b = block_of(data)) touch(*b, {0, int64_t(result.nbytes())}, op, true);
    c10::Storage taken(c10::Storage::use_byte_size_t{}, result.nbytes(), std::move(data), &immortal<DeviceAllocator>(),
                       true);
    storages_.emplace_back(result, taken);
    return taken;
  }

  bool dry_;
  std::vector<std::pair<c10::Storage, c10::Storage>> storages_;  // host, device
  std::vector<std::pair<Tensor, Tensor>> originals_;             // alias, device tensor
};

}  // namespace simdev
