// Copies between host and devices: what crosses which link, on which stream, and who waits for it.
//
// The rules are those of torch's copy for CUDA, read from its source (aten/src/ATen/native/cuda/Copy.cu): which side
// converts, what needs a temporary tensor, and when a copy that was asked for as non_blocking is none.
#pragma once

#include "kernels.hpp"

namespace simdev {

enum class CopyKind { kSync, kAsync, kAsyncPageable, kPeer };  // the order of KINDS in _library.py

struct LinkUse {
  uint64_t count = 0, bytes = 0;
};

struct Links {
  std::map<std::tuple<int, int, CopyKind>, LinkUse> used;  // source, destination
  std::set<std::pair<int, int>> corrupt;                   // deliver wrong bytes, as some IOMMU setups do between GPUs
};
inline Links& links() { return immortal<Links>(); }

struct CopyPlan {
  int from, to;  // devices, or kHost
  CopyKind kind;
  size_t bytes;      // over the link
  size_t temporary;  // on the device, for as long as the copy is being issued
};

// One run of bytes to one run of bytes of the same type: nothing has to be converted or gathered.
inline bool is_plain(const Tensor& src, const Tensor& dst) {
  if (src.scalar_type() != dst.scalar_type() || src.sizes() != dst.sizes()) return false;
  return (src.is_contiguous() && dst.is_contiguous()) ||
         (src.strides() == dst.strides() && src.is_non_overlapping_and_dense());
}

inline CopyPlan plan_copy(const Tensor& src, const Tensor& dst, bool non_blocking) {
  const int from = src.is_privateuseone() ? src.device().index() : kHost;
  const int to = dst.is_privateuseone() ? dst.device().index() : kHost;
  const size_t count = dst.numel();
  if (from != kHost && to != kHost) return {from, to, CopyKind::kPeer, count * src.element_size(), 0};

  const Tensor& host = from == kHost ? src : dst;
  const Tensor& device = from == kHost ? dst : src;
  const bool plain = is_plain(src, dst);
  // A blocking copy converts on the host, to spare the device the memory; a non_blocking one on the device, because
  // the host does not wait. The bytes that cross are of the type of the other side.
  const Tensor& wire = non_blocking ? host : device;
  const bool device_gathers = !plain && !(device.is_contiguous() && device.scalar_type() == wire.scalar_type());
  // What the host has to gather first goes through pageable memory, even when the tensor itself is pinned.
  const bool direct = plain || (host.is_contiguous() && src.sizes() == dst.sizes());
  const bool pinned = direct && block_of(host);
  const auto kind = !non_blocking ? CopyKind::kSync : pinned ? CopyKind::kAsync : CopyKind::kAsyncPageable;
  const size_t bytes = count * wire.element_size();
  return {from, to, kind, bytes, device_gathers ? bytes : 0};
}

inline std::shared_ptr<Bytes> bytes_under(const Tensor& t) {
  const Block* b = block_of(t);
  return b ? b->bytes : nullptr;
}

// A CPU tensor over the bytes of `t` that owns nothing. A queued task must not hold a tensor that Python has seen: the
// last reference to it may only go away under the interpreter's lock.
inline Tensor borrow(const Tensor& t) {
  c10::DataPtr data(t.storage().unsafeGetStorageImpl()->mutable_data(), c10::Device(c10::kCPU));
  c10::Storage storage(c10::Storage::use_byte_size_t{}, t.storage().nbytes(), std::move(data), nullptr, false);
  Tensor borrowed = at::detail::make_tensor<c10::TensorImpl>(std::move(storage),
                                                             c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
  borrowed.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  borrowed._set_conj(t.is_conj());
  borrowed._set_neg(t.is_neg());
  return borrowed;
}

inline std::function<void()> copy_task(const Tensor& src, const Tensor& dst, const CopyPlan& plan) {
  if (settings().dry) return [] {};
  // Pageable memory is read when the copy is issued: the driver stages it, and the host may go on and overwrite it.
  const bool staged = plan.kind == CopyKind::kAsyncPageable && plan.from == kHost;
  const bool corrupt = links().corrupt.count({plan.from, plan.to}) > 0;
  return [from = staged ? src.clone() : borrow(src), to = borrow(dst), corrupt]() mutable {
    to.copy_(from);
    if (corrupt) to.zero_();
  };
}

inline Tensor copy_from(const Tensor& src, const Tensor& dst, bool non_blocking) {
  Lock lock;
  TORCH_CHECK((src.is_privateuseone() || src.is_cpu()) && (dst.is_privateuseone() || dst.is_cpu()),
              "simdev: there is no copy from ", src.device(), " to ", dst.device());
  if (dst.numel() == 0) return dst;
  const CopyPlan plan = plan_copy(src, dst, non_blocking);
  const c10::DataPtr temporary = allocate(plan.from == kHost ? plan.to : plan.from, plan.temporary);
  if (plan.from != plan.to) {
    LinkUse& use = links().used[{plan.from, plan.to, plan.kind}];
    use.count++;
    use.bytes += plan.bytes;
  }

  // On the current stream of the source, or of the only device. Between devices the current streams of both wait for
  // each other before and after, as torch does on CUDA.
  Stream& on = current_stream(plan.from == kHost ? plan.to : plan.from);
  Stream& other = current_stream(plan.to == kHost ? plan.from : plan.to);
  wait_for(on, other);
  static const std::string* name = intern("copy_");
  const Operation operation{on, issue(on), name};
  touch(src, operation, false);
  touch(dst, operation, true);

  const bool host_waits = plan.kind == CopyKind::kSync || (plan.kind == CopyKind::kAsyncPageable && plan.to == kHost);
  enqueue(on, {copy_task(src, dst, plan), bytes_under(src), bytes_under(dst)});
  if (host_waits) {
    table().host_syncs++;
    synchronize(on);
  } else {
    wait_for(other, on);
  }
  return dst;
}

}  // namespace simdev
