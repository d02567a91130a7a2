// What a kernel, and an instance of it, takes beside the plain products of dense or packed rows under any band: three
// axes, each of which costs registers and time. Plain C++.
#pragma once

namespace xformers::cuda {

// How the rows of q, k, v and the bias are read.
enum class RowAccess : int {
  kChunks,  // they begin at and consist of units of 16 bytes
  kAny,     // element by element where they don't
};

// What keys may be beside rows one after the other: a set. kShortSequences is no kernel's of the lists, but an
// instance's that the plain one has for packed sequences so short that its row tiles would be mostly empty.
// kBlockedKeys: a block mask says which of them are walked over.
enum KeyForm : int { kPagedKeys = 1, kQuantisedKeys = 2, kShortSequences = 4, kBlockedKeys = 8 };

// What may happen to a score: a set.
enum ScoreOp : int {
  kBiasOp = 1,
  kDropoutOp = 2,
  kSignedScaleOp = 4,  // softmax_scale <= 0
  kSoftcapOp = 8,
  kAlibiOp = 16,
};
inline constexpr int kModifyOps = kSoftcapOp | kAlibiOp;
inline constexpr int kAllScoreOps = kBiasOp | kDropoutOp | kSignedScaleOp | kModifyOps;

struct Features {
  RowAccess rows = RowAccess::kChunks;
  int keys = 0;       // KeyForm
  int score_ops = 0;  // ScoreOp

  static const Features kPlain, kBlocked, kScored, kModified, kGeneral, kShort;

  // Whether any of the score operations may be asked for.
  constexpr bool may(int ops) const { return (score_ops & ops) != 0; }

  // Whether a block mask may be given.
  constexpr bool blocked() const { return (keys & kBlockedKeys) != 0; }

  // As a number, for kernels: nvcc's host stub of a kernel can't be a template over a struct.
  constexpr int code() const { return static_cast<int>(rows) | keys << 4 | score_ops << 8; }
  static constexpr Features of(int code) { return {static_cast<RowAccess>(code & 15), code >> 4 & 15, code >> 8}; }
  constexpr bool operator==(const Features&) const = default;
};

inline constexpr Features Features::kPlain = {};
inline constexpr Features Features::kBlocked = {.keys = kBlockedKeys};
inline constexpr Features Features::kScored = {.score_ops = kBiasOp | kDropoutOp | kSignedScaleOp};
inline constexpr Features Features::kModified = {.score_ops = kModifyOps | kSignedScaleOp};
inline constexpr Features Features::kShort = {.keys = kShortSequences};
inline constexpr Features Features::kGeneral = {RowAccess::kAny, kPagedKeys | kQuantisedKeys | kBlockedKeys,
                                                kAllScoreOps};

}  // namespace xformers::cuda
