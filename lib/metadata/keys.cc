#include "lib/metadata/keys.h"

#include <cassert>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace braid {
namespace {

constexpr size_t kIdKeyBytes = 1 + Uuid::kBytes;
constexpr size_t kRunKeyBytes = kIdKeyBytes + 2 + 1 + 8;  // column, leg, first unit

std::string IdKey(char letter, const Uuid& id) {
  std::string key(1, letter);
  key.append(reinterpret_cast<const char*>(id.bytes().data()), Uuid::kBytes);
  return key;
}

void AppendBig(std::string& key, uint64_t value, int bytes) {
  for (int i = bytes - 1; i >= 0; --i) {
    key.push_back(static_cast<char>(static_cast<uint8_t>(value >> (8 * i))));
  }
}

uint64_t Big(absl::string_view bytes) {
  uint64_t value = 0;
  for (char c : bytes) value = value << 8 | static_cast<uint8_t>(c);
  return value;
}

}  // namespace

std::string DeviceKey(const Uuid& device) { return IdKey('d', device); }
std::string VolumeKey(const Uuid& volume) { return IdKey('v', volume); }
std::string RunPrefix(const Uuid& volume) { return IdKey('r', volume); }

std::string RunKey(const Uuid& volume, const MapRun& run) {
  std::string key = RunPrefix(volume);
  AppendBig(key, run.column, 2);
  AppendBig(key, run.leg, 1);
  AppendBig(key, run.first.value(), 8);
  return key;
}

std::string GrantPrefix(const Uuid& volume) { return IdKey('g', volume); }

std::string GrantKey(const Uuid& volume, const UnitPlace& first_leg) {
  std::string key = GrantPrefix(volume);
  AppendBig(key, first_leg.device.value(), 2);
  AppendBig(key, first_leg.unit.value(), 8);
  return key;
}

absl::StatusOr<Uuid> IdOfKey(absl::string_view key) {
  if (key.size() != kIdKeyBytes) {
    return absl::DataLossError(absl::StrCat("key ", ShowKey(key), " has no UUID"));
  }
  std::array<uint8_t, Uuid::kBytes> id{};
  for (size_t i = 0; i < id.size(); ++i) id[i] = static_cast<uint8_t>(key[i + 1]);
  return Uuid(id);
}

absl::Status ReadRunKey(absl::string_view key, MapRun& run) {
  if (key.size() != kRunKeyBytes) {
    return absl::DataLossError(absl::StrCat("key ", ShowKey(key), " is no map run's"));
  }
  run.column = static_cast<uint32_t>(Big(key.substr(kIdKeyBytes, 2)));
  run.leg = static_cast<uint32_t>(Big(key.substr(kIdKeyBytes + 2, 1)));
  run.first = ColumnUnit(Big(key.substr(kIdKeyBytes + 3, 8)));
  return absl::OkStatus();
}

std::string PrefixEnd(absl::string_view prefix) {
  std::string end(prefix);
  while (!end.empty() && end.back() == '\xff') end.pop_back();
  assert(!end.empty());
  end.back() = static_cast<char>(static_cast<uint8_t>(end.back()) + 1);
  return end;
}

std::string ShowKey(absl::string_view key) {
  if (key.empty()) return "''";
  return absl::StrCat("'", absl::CHexEscape(key.substr(0, 1)), " ",
                      absl::BytesToHexString(key.substr(1, 64)), "'");
}

}  // namespace braid
