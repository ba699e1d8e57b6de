import re, sys
src = open(sys.argv[1]).read(); k8s, stg = sys.argv[2:4]
gov = re.search(r'^go (\S+)', src, re.M).group(1)
local = re.findall(r'^\s*(?:replace )?(k8s\.io/\S+) => \./staging/', src, re.M)
reqs = [l.strip() for blk in re.findall(r'^require \((.*?)^\)', src, re.M | re.S) for l in blk.splitlines() if l.strip()]
other = [l.strip() for l in re.findall(r'^\s*(?:replace )?(\S+(?: v\S+)? => \S+ v\S+)', src, re.M)]
print(f"module example.invalid/controlplane\n\ngo {gov}\n\ngodebug default=go{'.'.join(gov.split('.')[:2])}\n")
print("require (\n\tk8s.io/kubernetes " + k8s)
for r in reqs: print("\t" + re.sub(r'^(k8s\.io/\S+) v0\.0\.0(?=\s|$)', rf'\1 {stg}', r))
print(")\n\nreplace (")
for m in local: print(f"\t{m} => {m} {stg}")
for r in other: print("\t" + r)
print(")")
