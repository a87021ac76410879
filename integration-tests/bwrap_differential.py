# Says what is at and below /mnt: kinds, modes, mount flags and contents, then whether each folder and file can be
# written. File systems of the kernel's own are not walked: /proc and a queue of the host's change by themselves.
import errno, os, stat, sys
ROOM, KERNEL = '/mnt', ('proc', 'sysfs', 'mqueue', 'devpts')
FLAGS = ('ro', 'nosuid', 'nodev', 'noexec')
kinds, lines, folders, files = {}, [], [], []
for line in open('/proc/self/mountinfo'):
    fields, rest = [part.split() for part in line.split(' - ')]
    kinds[fields[2]] = rest[0]
    # What covers parts of /proc is not compared: ours covers more, and says noexec (root could write sysctls under theirs).
    is_cover = rest[0] == 'proc' and fields[3] != '/'
    if (fields[4] + '/').startswith(ROOM + '/') and not is_cover:
        flags = [flag for flag in FLAGS if flag in fields[5].split(',')]
        # Nor are the flags of queues, for which ours has all that protect.
        if rest[0] == 'mqueue':
            flags = []
        lines.append(' '.join(['mount', fields[4], rest[0]] + flags))
lines.sort()
def attempt(f):
    try:
        return str(f())
    except OSError as e:
        return errno.errorcode[e.errno]
def look(path):
    s = os.lstat(path)
    kind = kinds.get('%d:%d' % (os.major(s.st_dev), os.minor(s.st_dev)))
    line = [path, stat.filemode(s.st_mode), str(s.st_uid), str(s.st_gid)]
    if stat.S_ISLNK(s.st_mode):
        line.append(os.readlink(path))
    elif kind not in KERNEL:
        v = os.statvfs(path)
        line.append('%x' % (v.f_flag & 15))
        if kind == 'tmpfs' and v.f_blocks * v.f_frsize <= 1 << 20:
            line.append('of %d bytes' % (v.f_blocks * v.f_frsize))
        if stat.S_ISREG(s.st_mode):
            line.append(attempt(lambda: open(path).read()))
            files.append(path)
        elif stat.S_ISCHR(s.st_mode):
            line.append(attempt(lambda: os.close(os.open(path, os.O_RDWR | os.O_NOCTTY))))
    lines.append(' '.join(line))
    if stat.S_ISDIR(s.st_mode) and kind not in KERNEL:
        folders.append(path)
        try:
            names = os.listdir(path)
        except OSError as e:
            lines.append(path + ' ' + errno.errorcode[e.errno])
            return
        for name in sorted(names):
            attempt(lambda: look(path + '/' + name))
look(ROOM)
for path in folders:
    lines.append('new ' + path + ' ' + attempt(lambda: open(path + '/written', 'x').close()))
for path in files:
    lines.append('append ' + path + ' ' + attempt(lambda: open(path, 'a').write('+')))
print('\n'.join(lines))
