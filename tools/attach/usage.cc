#include "tools/attach/usage.h"

#include <sys/sysmacros.h>
#include <unistd.h>

#include <climits>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace braid::attach {

namespace {

namespace fs = std::filesystem;

std::string FirstLine(const fs::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

std::vector<fs::path> Entries(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    entries.push_back(it->path());
  }
  return entries;
}

// Of each line of /proc/self/mountinfo: "36 35 98:0 /root /mount/point options …".
struct Mount {
  std::string device;  // "major:minor"
  std::string point;
};
std::optional<Mount> FindMount(const std::function<bool(const Mount&)>& matches) {
  std::ifstream in("/proc/self/mountinfo");
  for (std::string line; std::getline(in, line);) {
    const std::vector<std::string> fields = absl::StrSplit(line, ' ');
    if (fields.size() < 6) continue;
    Mount mount{fields[2], DecodeMountPath(fields[4])};
    if (matches(mount)) return mount;
  }
  return std::nullopt;
}

std::string OpenInProcess(const std::string& path) {
  const pid_t self = getpid();
  for (const fs::path& process : Entries("/proc")) {
    int pid = 0;
    if (!absl::SimpleAtoi(process.filename().string(), &pid) || pid == self) continue;
    for (const fs::path& descriptor : Entries(process / "fd")) {
      char target[PATH_MAX];
      const ssize_t length = readlink(descriptor.c_str(), target, sizeof target);
      if (length > 0 && absl::string_view(target, static_cast<size_t>(length)) == path) {
        return absl::StrCat("open in ", DescribeProcess(pid));
      }
    }
  }
  return "";
}

std::string LoopDeviceOn(const std::string& path) {
  for (const fs::path& device : Entries("/sys/block")) {
    if (!absl::StartsWith(device.filename().string(), "loop")) continue;
    if (FirstLine(device / "loop/backing_file") == path) {
      return absl::StrCat("the backing file of /dev/", device.filename().string());
    }
  }
  return "";
}

}  // namespace

std::string DecodeMountPath(absl::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&](size_t at) { return static_cast<unsigned>(text[at] - '0'); };
    if (text[i] == '\\' && i + 3 < text.size() && digit(i + 1) < 4 && digit(i + 2) < 8 &&
        digit(i + 3) < 8) {
      out.push_back(static_cast<char>(digit(i + 1) * 64 + digit(i + 2) * 8 + digit(i + 3)));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

std::string DescribeProcess(pid_t pid) {
  return absl::StrCat("process ", pid, " (",
                      FirstLine(fs::path("/proc") / absl::StrCat(pid) / "comm"), ")");
}

bool IsMountPoint(const std::string& path) {
  return FindMount([&](const Mount& mount) { return mount.point == path; }).has_value();
}

std::string UserOfFile(const std::string& path) {
  const std::string loop = LoopDeviceOn(path);
  return !loop.empty() ? loop : OpenInProcess(path);
}

std::string UserOfBlockDevice(const std::string& path, dev_t number) {
  const std::string name = absl::StrCat(major(number), ":", minor(number));
  const std::optional<Mount> mount = FindMount([&](const Mount& m) { return m.device == name; });
  if (mount.has_value()) return absl::StrCat("mounted at ", mount->point);
  const std::vector<fs::path> holders = Entries(fs::path("/sys/dev/block") / name / "holders");
  if (!holders.empty()) return absl::StrCat("used by ", holders.front().filename().string());
  std::ifstream swaps("/proc/swaps");
  for (std::string line; std::getline(swaps, line);) {
    if (absl::StartsWith(line, absl::StrCat(path, " ")) ||
        absl::StartsWith(line, absl::StrCat(path, "\t"))) {
      return "used as swap";
    }
  }
  const std::string loop = LoopDeviceOn(path);
  return !loop.empty() ? loop : OpenInProcess(path);
}

}  // namespace braid::attach
