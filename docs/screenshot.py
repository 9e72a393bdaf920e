"""The top of a report as a PNG: python docs/screenshot.py runs/demo/report.html docs/report.png"""

import base64
import shutil
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

WIDTH, HEIGHT = 1200, 1230

if __name__ == "__main__":
    page, picture = Path(sys.argv[1]), Path(sys.argv[2])
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={WIDTH},{HEIGHT}"):
        options.add_argument(flag)
    with webdriver.Chrome(options, Service(executable_path=shutil.which("chromedriver"))) as chrome:
        chrome.get(page.resolve().as_uri())
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT, "scale": 1}
        shot = chrome.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        picture.write_bytes(base64.b64decode(shot["data"]))
